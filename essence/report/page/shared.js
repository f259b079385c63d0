// What the charts and the sample browser have in common. The files are joined into one script, see explore.py.
const FACETS = ["dataset", "pair", "benchmark", "checkpoint", "protocol", "span", "sections", "rows"];

const unique = (values) => [...new Set(values)];
const readData = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Options of the facet selects; `all` adds one that stands for every value. A facet of one value is hidden. */
function fillFacets(form, entries, all) {
  for (const facet of FACETS) {
    const select = form.elements[facet], values = unique(entries.map((entry) => entry[facet]));
    select.replaceChildren(...values.map((value) => new Option(value)));
    if (all && values.length > 1) select.append(new Option("all", "*"));
    select.parentElement.hidden = values.length < 2;
  }
}

/** The entries that agree with every facet select. */
function matchingFacets(form, entries) {
  return entries.filter((entry) => FACETS.every((facet) => ["*", entry[facet]].includes(form.elements[facet].value)));
}
