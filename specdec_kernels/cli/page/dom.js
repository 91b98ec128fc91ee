// Elements. Text reaches the document as text nodes alone, never as markup.

const byId = (id) => document.getElementById(id);

/** Say on the page what went wrong in it, once. */
function fail(reason) {
  if (document.documentElement.dataset.error) return;
  document.documentElement.dataset.error = reason;
  byId("failure").textContent = `This page could not draw its trace: ${reason}`;
  byId("failure").hidden = false;
}
addEventListener("error", (event) => fail(event.message));
addEventListener("unhandledrejection", (event) => fail(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => fail(`${event.violatedDirective} was violated`));

const SVG = byId("tree").namespaceURI;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

/** An HTML element. */
function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element. */
function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** A list of names and values. */
function pairs(entries) {
  return entries.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value)));
}
