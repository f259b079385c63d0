// The charts: reads the JSON in the page, fills the selects, draws one chart and its table.
(() => {
  const root = document.getElementById("explore"), data = readData("explore-data");
  if (!root || !data) return;
  const svg = root.querySelector(".chart > svg"), note = document.getElementById("explore-note");
  const body = root.querySelector("tbody"), form = root.querySelector("form");
  const rivalsBox = document.getElementById("explore-rivals");
  const MEASURES = {
    accuracy: { title: "accuracy", part: "scores", percent: true },
    retention: { title: "accuracy kept, LSP 1.0 = 100 %", part: "scores", percent: true, paper: "retention" },
    time: { title: "training time, ratio to LSP 1.0", part: "costs", paper: "cost" },
    memory: { title: "peak memory, ratio to LSP 1.0", part: "costs", paper: "cost" },
    flops: { title: "training FLOPs, ratio to LSP 1.0", part: "costs", paper: "cost" },
    energy: { title: "energy of training, ratio to LSP 1.0 (the paper reports none)", part: "costs" },
    length: { title: "mean tokens a completion", part: "scores" },
    cap: { title: "completions cut off at the token cap", part: "scores", percent: true },
    stopped: { title: "completions that the model ended itself", part: "scores", percent: true },
    endings: { title: "completions by how they ended, and accuracy", part: "endings", percent: true },
    training: { title: "training loss", part: "losses" },
    validation: { title: "validation loss, cross-entropy", part: "losses" },
  };
  const INK = ["accent", "violet", "teacher", "ochre", "cyan", "ink"];
  const DASHES = ["", "7 4", "2 3"];
  const RIVAL_DASHES = ["1 4", "6 3", "10 3 2 3", "3 3"];
  const MOST_LINES = INK.length * DASHES.length;
  const ENDINGS = [["stop", "teacher", "stopped by itself"], ["length", "reported", "at the token cap"], ["loop", "untrained", "cut: repeats itself"]];
  const BAR = 26;
  /** Marks of several lines at one LSP stand this far apart, so that no interval hides another; all within the limit. */
  const APART = 5, MOST_APART = 30;

  const entries = data.groups.flatMap((group) => group.scores.map((score) => ({ ...group, ...score })));

  function makeSvg(name, attributes, text) {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function number(value, measure) {
    if (value === null || value === undefined) return "–";
    if (measure.percent) return percent(value);
    return measure.part === "costs" ? `${value.toFixed(2)} ×` : String(Number(value.toPrecision(4)));
  }

  function withInterval([value, low, high], measure) {
    const ends = low === undefined || (low === null && high === null) ? "" : ` [${number(low, measure)}, ${number(high, measure)}]`;
    return number(value, measure) + ends;
  }

  /** The lines of the chosen measure: {label, colour, dash, points: [{x, y, low, high, arm}]}. */
  function lines(found, name, measure) {
    if (measure.part === "losses") {
      return found.slice(0, 1).flatMap((entry) => entry[name].map((curve) => ({
        label: `LSP ${curve.lsp}`, colour: curve.role, dash: "",
        points: curve.points.map(([x, y]) => ({ x, y })),
      })));
    }
    if (measure.part === "endings") return found.slice(0, 1).map((entry) => accuracyLine(entry, "accuracy"));
    const several = FACETS.filter((facet) => unique(found.map((entry) => entry[facet])).length > 1);
    const label = (entry) => several.map((facet) => entry[facet]).join(", ") || "this run";
    return apart(found.map((entry, index) => ({
      label: label(entry), colour: INK[index % INK.length], dash: DASHES[Math.floor(index / INK.length) % DASHES.length],
      points: pointsOf(measure.part === "costs" ? entry.costs : entry.arms, name),
    })).filter((line) => line.points.length));
  }

  function apart(all) {
    const step = Math.min(APART, MOST_APART / all.length);
    return all.map((line, index) => ({ ...line, shift: (index - (all.length - 1) / 2) * step }));
  }

  const accuracyLine = (entry, label) => ({ label, colour: "ink", dash: "", points: pointsOf(entry.arms, "accuracy") });

  function pointsOf(arms, name) {
    return arms.filter((arm) => arm[name][0] !== null)
      .map((arm) => ({ x: arm.lsp, y: arm[name][0], low: arm[name][1], high: arm[name][2], arm }));
  }

  function rivalLines(name) {
    if (name !== "accuracy" || !rivalsBox.checked) return [];
    return data.rivals.map((rival, index) => ({
      label: `others: ${rival.label} (${rival.source})`, colour: "reported", dash: RIVAL_DASHES[index % RIVAL_DASHES.length],
      points: rival.points.map(([x, y]) => ({ x, y })),
    }));
  }

  function steps(top) {
    const rough = top / 5, base = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * base).find((size) => size >= rough);
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, index) => index * step);
  }

  function axes(scale, measure, lossy) {
    for (const y of steps(scale.top)) {
      const digits = measure.percent ? `${Number((100 * y).toPrecision(4))} %` : String(Number(y.toPrecision(4)));
      svg.append(makeSvg("line", { x1: scale.left, x2: scale.right, y1: scale.y(y), y2: scale.y(y), class: "grid" }));
      svg.append(makeSvg("text", { x: scale.left - 6, y: scale.y(y) + 4, "text-anchor": "end" }, digits));
    }
    const ticks = lossy ? steps(scale.last) : [0, 0.25, 0.5, 0.75, 1];
    for (const x of ticks) svg.append(makeSvg("text", { x: scale.x(x), y: scale.bottom + 18, "text-anchor": "middle" }, x));
    const below = lossy ? "optimiser step" : "lead-span proportion (LSP)";
    svg.append(makeSvg("text", { x: (scale.left + scale.right) / 2, y: scale.bottom + 38, "text-anchor": "middle" }, below));
    svg.append(makeSvg("text", { x: 4, y: 14 }, measure.title));
  }

  /** Names the cells behind a mark, each with its manifest and, where there are any, its samples. */
  function describe(line, point, measure) {
    note.replaceChildren(`${line.label}, LSP ${point.x}: ${withInterval([point.y, point.low, point.high], measure)}; ` +
      `${point.arm.cells.length} of ${point.arm.planned} cells. ` +
      (measure === MEASURES.time && point.arm.load ? `Measured beside: ${point.arm.load}. ` : ""));
    for (const [cell, link, value, grade] of point.arm.cells) {
      note.append(make("a", { href: link }, value === null ? cell : `${cell} (${percent(value)})`), " ");
      if (!grade || !document.getElementById("samples")) continue;
      const button = make("button", { type: "button", class: "small" }, "samples");
      button.addEventListener("click", () => document.dispatchEvent(new CustomEvent("samples", { detail: grade })));
      note.append(button, " ");
    }
  }

  function drawLine(line, scale, measure) {
    const style = `stroke: var(--${line.colour}); fill: var(--${line.colour})`;
    const path = line.points.map((point) => `${scale.x(point.x) + (line.shift ?? 0)},${scale.y(point.y)}`).join(" ");
    svg.append(makeSvg("polyline", { points: path, style: `${style}; fill: none`, "stroke-dasharray": line.dash, class: "line" }));
    for (const point of line.points.filter((one) => one.arm)) svg.append(mark(line, point, scale, measure, style));
  }

  function mark(line, point, scale, measure, style) {
    const x = scale.x(point.x) + (line.shift ?? 0);
    const text = `${line.label}, LSP ${point.x}: ${withInterval([point.y, point.low, point.high], measure)}`;
    const made = makeSvg("g", { tabindex: svg.querySelector(".point") ? -1 : 0, role: "img", "aria-label": text, style, class: "point" });
    if (point.low != null && point.high != null) {
      made.append(makeSvg("line", { x1: x, x2: x, y1: scale.y(point.low), y2: scale.y(point.high) }));
    }
    // The ring that nobody sees is what a finger hits.
    made.append(makeSvg("circle", { cx: x, cy: scale.y(point.y), r: 14, class: "touch" }));
    made.append(makeSvg("circle", { cx: x, cy: scale.y(point.y), r: 5 }), makeSvg("title", {}, text));
    for (const event of ["focus", "mouseenter", "click"]) made.addEventListener(event, () => describe(line, point, measure));
    return made;
  }

  /** One mark is reached with Tab, the others from it with the arrow keys: a hundred marks are no hundred stops. */
  function step(event) {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const marks = [...svg.querySelectorAll(".point")], next = marks[marks.indexOf(document.activeElement) + by];
    if (!by || !marks.includes(document.activeElement)) return;
    event.preventDefault();
    if (!next) return;
    document.activeElement.setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  }

  function drawEndings(entry, scale) {
    for (const arm of entry.arms) {
      const x = Math.max(scale.left, Math.min(scale.right - BAR, scale.x(arm.lsp) - BAR / 2));
      let below = 0;
      for (const [name, colour, words] of ENDINGS) {
        const share = arm.endings[name] ?? 0;
        const bar = makeSvg("rect", { x, width: BAR, y: scale.y(below + share), height: scale.y(below) - scale.y(below + share), style: `fill: var(--${colour})`, class: "bar" });
        bar.append(makeSvg("title", {}, `LSP ${arm.lsp}: ${percent(share)} ${words}`));
        svg.append(bar);
        below += share;
      }
    }
  }

  function drawPaper(scale, measure) {
    if (!measure.paper) return;
    const [lsp, value, words] = data.paper[measure.paper];
    const x = scale.x(lsp), y = scale.y(value);
    svg.append(makeSvg("path", { d: `M${x} ${y - 8}L${x + 8} ${y}L${x} ${y + 8}L${x - 8} ${y}Z`, class: "paper" }));
    svg.append(makeSvg("text", { x: scale.right, y: scale.bottom - 8, "text-anchor": "end", class: "paper-words" }, `◇ paper: ${words}`));
  }

  function drawBaselines(found, scale, name) {
    if (name !== "accuracy" || found.length !== 1) return;
    const drawn = [["teacher", "teacher", "teacher"], ["student", "untrained", "untrained student"]]
      .filter(([role]) => found[0][role] != null);
    drawn.forEach(([role, colour, words], index) => {
      const y = scale.y(found[0][role]), style = `stroke: var(--${colour})`;
      const [x, anchor] = index ? [scale.right, "end"] : [scale.left + 4, "start"];
      svg.append(makeSvg("line", { x1: scale.left, x2: scale.right, y1: y, y2: y, style, "stroke-dasharray": "5 4" }));
      svg.append(makeSvg("text", { x, y: y - 4, "text-anchor": anchor, style: `fill: var(--${colour})` }, `${words} ${percent(found[0][role])}`));
    });
  }

  function legend(drawn, measure) {
    const seen = [...new Map(drawn.map((line) => [line.label, line])).values()];
    const bars = measure.part === "endings" ? ENDINGS.map(([, colour, label]) => ({ label, colour, dash: "", wide: 8, class: "bar" })) : [];
    root.querySelector(".keys").replaceChildren(...[...bars, ...seen].map((line) => {
      const sample = makeSvg("svg", { viewBox: "0 0 28 8", "aria-hidden": "true" });
      const style = `stroke: var(--${line.colour}); stroke-width: ${line.wide ?? 3}`;
      sample.append(makeSvg("line", { x1: 0, x2: 28, y1: 4, y2: 4, style, "stroke-dasharray": line.dash, class: line.class ?? "" }));
      return make("li", {}, sample, line.label);
    }));
  }

  function row(cells) {
    return make("tr", {}, ...cells.map((text, index) => make(index ? "td" : "th", index ? {} : { scope: "row" }, String(text))));
  }

  function tabulate(drawn, measure, found) {
    const rows = drawn.flatMap((line) => (measure.part === "losses" ? line.points.slice(-1) : line.points)
      .map((point) => row([line.label, point.x, withInterval([point.y, point.low, point.high], measure)])));
    const endings = measure.part !== "endings" || !found.length ? [] : ENDINGS.flatMap(([name, , words]) =>
      found[0].arms.map((arm) => row([words, arm.lsp, percent(arm.endings[name] ?? 0)])));
    body.replaceChildren(...rows, ...endings);
  }

  function tellWhatIsShown(points, found, name, measure, hidden) {
    const single = ["losses", "endings"].includes(measure.part);
    note.textContent = !points.length ? "Nothing recorded for this choice."
      : single && found.length > 1 ? `Shown: ${found[0].dataset}, ${found[0].pair}, ${found[0].benchmark}. Choose above.`
      : measure.part === "losses" ? "A line a seed."
      : "Point at a mark, or reach it with Tab and the arrow keys, for its cells and their manifests.";
    const unlike = measure.part === "costs" && found.some((entry) => entry.costs.some((arm) => arm.unlike.includes(name)));
    if (unlike) note.textContent += " Not drawn: arms whose trainings ran unlike those at LSP 1.0, as their group says.";
    if (hidden > 0) note.textContent += ` ${hidden} more lines are not drawn: choose above.`;
  }

  function scaleFor(points, found, name, measure) {
    const lossy = measure.part === "losses", width = Math.max(300, Math.min(900, svg.parentElement.clientWidth));
    const height = Math.min(420, 0.62 * width + 70);
    const baseline = name === "accuracy" && found.length === 1 ? [found[0].teacher ?? 0, found[0].student ?? 0] : [];
    const others = [...baseline, measure.paper ? data.paper[measure.paper][1] : 0, measure.part === "endings" ? 1 : 0];
    const top = 1.06 * Math.max(1e-9, ...points.map((point) => point.high ?? point.y), ...others);
    const last = lossy ? Math.max(1, ...points.map((point) => point.x)) : 1.03;
    const [left, right, above, bottom] = [52, width - 12, 28, height - 46];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    return {
      left, right, bottom, top, last,
      x: (value) => left + (value / last) * (right - left),
      y: (value) => bottom - (value / top) * (bottom - above),
    };
  }

  function draw() {
    const name = form.elements.measure.value, measure = MEASURES[name];
    const found = matchingFacets(form, entries), ours = lines(found, name, measure);
    const kept = ours.slice(0, measure.part === "losses" ? ours.length : MOST_LINES), drawn = [...kept, ...rivalLines(name)];
    const points = drawn.flatMap((line) => line.points), scale = scaleFor(points, found, name, measure);
    svg.setAttribute("aria-label", `${measure.title}: ${kept.length} lines; the values are in the table below`);
    svg.replaceChildren();
    rivalsBox.disabled = name !== "accuracy";
    tellWhatIsShown(points, found, name, measure, ours.length - kept.length);
    if (points.length) {
      axes(scale, measure, measure.part === "losses");
      if (measure.part === "endings") drawEndings(found[0], scale);
      drawBaselines(found, scale, name);
      drawn.forEach((line) => drawLine(line, scale, measure));
      drawPaper(scale, measure);
    }
    legend(drawn, measure);
    tabulate(drawn, measure, found);
  }

  if (!entries.length) return;
  fillFacets(form, entries, true);
  if (!matchingFacets(form, entries).length) form.elements.dataset.value = "*";
  form.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("resize", draw);
  svg.addEventListener("keydown", step);
  root.hidden = false;
  draw();
})();
