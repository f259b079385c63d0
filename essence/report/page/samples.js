// The sample browser: problem, completion and verdict of one or two runs, from pieces that are unpacked on demand.
(() => {
  const root = document.getElementById("samples"), data = readData("samples-data");
  if (!root || !data) return;
  const form = root.querySelector("form"), note = document.getElementById("samples-note");
  const list = root.querySelector(".list"), body = list.querySelector("tbody"), pages = root.querySelector(".pages");
  const shown = document.getElementById("sample");
  const ROWS_A_PAGE = 25, PIECES_KEPT = 4, MOST_MARKS = 200, WAIT_MS = 200;
  const VERDICTS = { right: "✓ right", wrong: "✗ wrong", "no answer": "– no answer", timeout: "? grader timed out" };
  const ENDINGS = { stop: "stopped", length: "at the cap", loop: "cut: repeats itself" };
  const NONE = "none";

  const entries = data.groups.flatMap((group) => group.runs.map((run) => ({ ...group, ...run })));
  const runOf = (grade) => entries.find((entry) => entry.grade === grade);
  const runName = (run) => (run.seed === "" ? run.model : `${run.model}, seed ${run.seed}`);
  const pieces = new Map(), waiting = new Map();
  const state = { runs: [], statements: {}, found: [], page: 0, at: -1, wanted: 0 };

  window.essencePiece = (id, text) => waiting.get(id)?.(text);

  /** The text of a piece: in the page itself, or of the script of its name beside the page. */
  function pieceText(id) {
    const embedded = document.getElementById(`piece-${id}`);
    if (embedded) return Promise.resolve(embedded.textContent);
    return new Promise((resolve, reject) => {
      const script = make("script", { src: `samples/${encodeURIComponent(id)}.js` });
      waiting.set(id, resolve);
      script.addEventListener("error", () => reject(new Error(`samples/${id}.js is not beside this page`)));
      script.addEventListener("load", () => { script.remove(); reject(new Error(`samples/${id}.js is no piece of this page`)); });
      document.head.append(script);
    });
  }

  async function unpacked(id) {
    if (!window.DecompressionStream) throw new Error("this browser is too old to unpack samples (no DecompressionStream)");
    const bytes = Uint8Array.from(atob(await pieceText(id)), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  /** A piece by id; the last few are kept. */
  function load(id) {
    if (!pieces.has(id)) {
      pieces.set(id, unpacked(id));
      pieces.get(id).catch(() => pieces.delete(id));
    }
    if (pieces.size > 2 * PIECES_KEPT) pieces.delete(pieces.keys().next().value);
    return pieces.get(id);
  }

  const verdict = (piece, row) => (piece.status[row] !== "graded" ? piece.status[row] : piece.correct[row] ? "right" : "wrong");

  /** Samples of both runs side by side: [row in the first, row in the second or undefined]. */
  function pairs([first, second]) {
    if (!second) return first.piece.problem.map((_, row) => [row]);
    const key = (piece, row) => `${piece.problems[piece.problem[row]][0]} ${piece.sample[row]}`;
    const rows = new Map(second.piece.problem.map((_, row) => [key(second.piece, row), row]));
    return first.piece.problem.map((_, row) => [row, rows.get(key(first.piece, row))]);
  }

  function filtered() {
    const wanted = form.elements.verdict.value, ending = form.elements.ending.value;
    const words = form.elements.words.value.toLowerCase(), { runs } = state;
    return pairs(runs).filter((pair) => {
      const verdicts = pair.map((row, side) => (row === undefined ? undefined : verdict(runs[side].piece, row)));
      if (wanted === "differ" ? pair.length < 2 || verdicts[0] === verdicts[1] : wanted !== "*" && verdicts[0] !== wanted) return false;
      if (ending !== "*" && runs[0].piece.finish_reason[pair[0]] !== ending) return false;
      return !words || texts(pair).some((text) => text.toLowerCase().includes(words));
    });
  }

  /** All that a search looks into. */
  function texts(pair) {
    const { piece } = state.runs[0], [problem, gold] = piece.problems[piece.problem[pair[0]]];
    return [problem, gold, state.statements[problem] ?? ""].concat(pair.flatMap((row, side) => {
      const other = state.runs[side].piece;
      return row === undefined ? [] : [other.text[row], other.end[row], other.extracted[row] ?? ""];
    }));
  }

  /** What a run's completions come to, by how they ended. */
  function totals({ run, piece }) {
    const ended = unique(piece.finish_reason).map((reason) => {
      const rows = piece.finish_reason.flatMap((one, row) => (one === reason ? [row] : []));
      const right = rows.filter((row) => piece.correct[row]).length;
      return `${rows.length.toLocaleString("en")} ${ENDINGS[reason] ?? reason} (${percent(right / rows.length)} of them right)`;
    });
    return make("li", {}, make("b", {}, runName(run)), `: ${piece.problem.length.toLocaleString("en")} samples: ${ended.join(", ")}. `,
      make("a", { href: run.link }, "manifest"), " ", make("a", { href: run.samples }, "samples.jsonl"));
  }

  function verdictCell(piece, row) {
    if (row === undefined) return make("td", {}, "–");
    const word = verdict(piece, row);
    return make("td", { class: `verdict ${word.replace(" ", "-")}` }, VERDICTS[word] ?? word,
      make("small", {}, `${piece.tokens[row].toLocaleString("en")} tokens, ${ENDINGS[piece.finish_reason[row]] ?? piece.finish_reason[row]}`));
  }

  function listRow(pair, index) {
    const { piece } = state.runs[0], [problem] = piece.problems[piece.problem[pair[0]]];
    const button = make("button", { type: "button", class: "small" }, `${problem} · ${piece.sample[pair[0]]}`);
    button.addEventListener("click", () => open(index, true));
    const answers = pair.map((row, side) => (row === undefined ? "–" : state.runs[side].piece.extracted[row] ?? "–"));
    const made = make("tr", {}, make("th", { scope: "row" }, button),
      ...pair.flatMap((row, side) => [verdictCell(state.runs[side].piece, row), make("td", { class: "answer" }, answers[side].slice(0, 60))]));
    if (index === state.at) made.setAttribute("aria-current", "true");
    return made;
  }

  function drawList() {
    const first = state.page * ROWS_A_PAGE, last = Math.min(state.found.length, first + ROWS_A_PAGE);
    const heads = state.runs.flatMap(({ run }) => [runName(run), "answer found"]);
    list.querySelector("thead tr").replaceChildren(...["Problem · sample", ...heads].map((text) => make("th", { scope: "col" }, text)));
    body.replaceChildren(...state.found.slice(first, last).map((pair, place) => listRow(pair, first + place)));
    list.parentElement.hidden = !state.found.length;
    pages.hidden = state.found.length <= ROWS_A_PAGE;
    pages.querySelector("span").textContent = `${first + 1} to ${last} of ${state.found.length.toLocaleString("en")}`;
    const [back, on] = pages.querySelectorAll("button");
    back.disabled = !state.page;
    on.disabled = last >= state.found.length;
  }

  function turn(by) {
    state.page += by;
    drawList();
  }

  /** The text with every place that the search found marked. */
  function marked(text) {
    const words = form.elements.words.value.toLowerCase(), made = document.createDocumentFragment();
    let from = 0, at = words ? text.toLowerCase().indexOf(words) : -1;
    for (let marks = 0; at >= 0 && marks < MOST_MARKS; marks += 1) {
      made.append(text.slice(from, at), make("mark", {}, text.slice(at, at + words.length)));
      from = at + words.length;
      at = text.toLowerCase().indexOf(words, from);
    }
    made.append(text.slice(from));
    return made;
  }

  function side({ run, piece }, row) {
    const made = make("section", { class: "side" }, make("h4", {}, runName(run)));
    if (row === undefined) {
      made.append(make("p", {}, "This run has no such sample."));
      return made;
    }
    const word = verdict(piece, row), repeats = piece.loop_at[row];
    const ended = ENDINGS[piece.finish_reason[row]] ?? piece.finish_reason[row];
    made.append(make("p", {}, make("span", { class: `verdict ${word.replace(" ", "-")}` }, VERDICTS[word] ?? word),
      `; answer found: ${piece.extracted[row] ?? "none"}; ${ended} after ${piece.tokens[row].toLocaleString("en")} tokens` +
      (repeats ? `; repeats itself from token ${repeats.toLocaleString("en")} on` : "") + "."));
    const text = make("pre", { tabindex: 0, "aria-label": `Completion, ${runName(run)}` }, marked(piece.text[row]));
    if (piece.left_out[row]) {
      text.append(make("i", {}, `\n… ${piece.left_out[row].toLocaleString("en")} characters are left out here; samples.jsonl has them …\n`), marked(piece.end[row]));
    }
    if (!piece.text[row]) text.append(make("i", {}, "(empty)"));
    made.append(text, make("p", { class: "caption" }, run.cell, " ", make("a", { href: run.link }, "manifest"), " ", make("a", { href: run.samples }, "samples.jsonl")));
    return made;
  }

  function open(index, focus) {
    state.at = index;
    const pair = state.found[index], { piece } = state.runs[0], [problem, gold] = piece.problems[piece.problem[pair[0]]];
    const statement = state.statements[problem];
    const step = (by, text) => {
      const button = make("button", { type: "button" }, text);
      button.disabled = !state.found[index + by];
      button.addEventListener("click", () => open(index + by, true));
      return button;
    };
    shown.replaceChildren(make("h3", {}, `Problem ${problem}, sample ${piece.sample[pair[0]]}`),
      make("p", { class: "pages" }, step(-1, "Previous sample"), " ", step(1, "Next sample")),
      make("p", { class: "statement" }, statement === undefined ? "The statement of this problem is not in this copy." : marked(statement)),
      make("p", {}, "Right answer: ", make("b", {}, gold)),
      make("div", { class: "sides" }, ...pair.map((row, place) => side(state.runs[place], row))));
    shown.hidden = false;
    root.classList.add("open");
    state.page = Math.floor(index / ROWS_A_PAGE);
    drawList();
    if (focus) {
      shown.focus({ preventScroll: true });
      shown.scrollIntoView({ block: "nearest" });
    }
  }

  function filter() {
    state.found = filtered();
    Object.assign(state, { page: 0, at: -1 });
    note.textContent = `${state.found.length.toLocaleString("en")} of ${state.runs[0].piece.problem.length.toLocaleString("en")} samples.`;
    drawList();
    if (state.found.length) open(0, false);
    else shown.hidden = true;
  }

  async function show() {
    const wanted = ++state.wanted, chosen = [form.elements.first.value, form.elements.second.value].filter((grade) => grade !== NONE).map(runOf);
    note.textContent = "Unpacking …";
    try {
      const loaded = await Promise.all(chosen.map((run) => load(run.grade)));
      const statements = await load(chosen[0].problems).catch(() => ({}));
      if (wanted !== state.wanted) return;
      Object.assign(state, { runs: chosen.map((run, place) => ({ run, piece: loaded[place] })), statements });
      root.querySelector(".totals").replaceChildren(...state.runs.map(totals));
      form.elements.verdict.querySelector("[value=differ]").disabled = chosen.length < 2;
      if (chosen.length < 2 && form.elements.verdict.value === "differ") form.elements.verdict.value = "*";
      filter();
    } catch (error) {
      if (wanted === state.wanted) note.textContent = `These samples cannot be shown: ${error.message}.`;
    }
  }

  /** The runs that the facets allow, on both sides; the second is the one at LSP 1.00 with the same seed. */
  function fillRuns() {
    const runs = matchingFacets(form, entries), options = () => runs.map((run) => new Option(runName(run), run.grade));
    form.elements.first.replaceChildren(...options());
    form.elements.second.replaceChildren(new Option("nothing", NONE), ...options());
    besideFull();
    form.querySelector("[type=submit]").disabled = !runs.length;
    if (!runs.length) note.textContent = "Nothing is graded for this choice.";
  }

  function besideFull() {
    const run = runOf(form.elements.first.value);
    const full = matchingFacets(form, entries).find((one) => run && one.grade !== run.grade && one.seed === run.seed && one.model === data.full);
    form.elements.second.value = full?.grade ?? NONE;
  }

  function choose(grade) {
    const run = runOf(grade);
    if (!run) return;
    for (const facet of FACETS) form.elements[facet].value = run[facet];
    fillRuns();
    form.elements.first.value = grade;
    besideFull();
    root.scrollIntoView();
    show();
  }

  if (!entries.length) return;
  fillFacets(form, entries, false);
  fillRuns();
  let timer;
  form.elements.words.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => state.runs.length && filter(), WAIT_MS);
  });
  form.addEventListener("change", ({ target }) => {
    if (target.name === "words") return;
    if (FACETS.includes(target.name)) fillRuns();
    if (target.name === "first") besideFull();
    if (state.runs.length) ["verdict", "ending"].includes(target.name) ? filter() : show();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (form.elements.first.value) show();
  });
  const [back, on] = pages.querySelectorAll("button");
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  document.addEventListener("samples", ({ detail }) => choose(detail));
  root.hidden = false;
})();
