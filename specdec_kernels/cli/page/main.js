// The page: which request and step are shown, and what moves them.

const trace = readTrace(byId("trace").textContent);
const measure = makeMeasure(getComputedStyle(document.documentElement));
const state = { request: 0, step: 0, timer: 0, layout: null, moveCursor: () => {}, markDepths: () => {} };

// Below the trees of a request that are all less tall than this there is room for its text.
const FLAT = 240;

const chosen = () => trace.requests[state.request];
const nameOf = (name) => visible(name).replaceAll("_", " ");
const last = () => Math.max(chosen().steps.length - 1, 0);

// What does not change.

function drawHead() {
  const { info, all } = trace;
  const drafted = info.drafter && info.drafter !== "none";
  const by = drafted ? ` drafted by ${visible(info.drafter)}` : info.drafter ? " without a drafter" : "";
  const model = String(info.model ?? "A generation").split(/[\\/]/).filter(Boolean).pop() ?? "";
  byId("title").replaceChildren(visible(model), html("span", { class: "by" }, by));
  const facts = Object.entries(info).filter(([name]) => name !== "drafter" && name !== "model");
  byId("facts").replaceChildren(
    ...facts.map(([name, value]) => html("li", {}, `${nameOf(name)} `, html("b", {}, visible(value))))
  );
  const figures = [
    ["tokens per step", all.mean.toFixed(2)],
    ["tokens", all.emitted.toLocaleString("en")],
    ["steps", all.steps.toLocaleString("en")],
  ];
  if (all.nodes) {
    figures.push(["drafts per step", (all.nodes / all.steps).toFixed(1)]);
    figures.push(["drafts accepted", percent(all.taken / all.nodes)]);
  }
  byId("figures").replaceChildren(...pairs(figures));
  byId("figures").firstChild.className = "first";
}

/** The first words of a prompt, by which it is known. */
function beginning(request) {
  const texts = request.prompt.slice(0, 24).map((id) => trace.texts.get(id));
  const words = texts.map((text) => (typeof text === "string" ? text : "…")).join("").trim();
  return visible(words.split(/\s*\n/)[0]).slice(0, 40);
}

function drawTabs() {
  const tabs = byId("tabs");
  tabs.hidden = trace.requests.length < 2;
  tabs.replaceChildren(
    ...trace.requests.map((request, i) => {
      const start = beginning(request);
      const mean = request.steps.length ? (request.emitted / request.steps.length).toFixed(2) : "no steps";
      const parts = [`${i + 1}`, html("span", { class: "start" }, start), html("span", { class: "mean" }, mean)];
      return html("button", { type: "button", role: "tab", "data-request": i, "aria-controls": "board" }, ...parts);
    })
  );
}

// What changes with the request.

function showRequest(number, step = 0) {
  state.request = Math.min(Math.max(number, 0), trace.requests.length - 1);
  const request = chosen();
  for (const tab of byId("tabs").children) {
    const selected = Number(tab.dataset.request) === state.request;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    if (selected) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  byId("slider").max = last();
  // Trees of several heights shall not push the page to and fro.
  const tallest = request.steps.reduce((most, one) => Math.max(most, heightOf(one)), 0);
  const flat = tallest < FLAT;
  if (flat) byId("left").append(byId("text-card"));
  else byId("right").prepend(byId("text-card"));
  byId("scroll").style.minHeight = `min(${Math.ceil(tallest) + 2}px, 45vh)`;
  state.markDepths = drawDepths(byId("depths"), byId("depth-note"), request);
  const settings = Object.entries(request.settings).map(([name, value]) => [nameOf(name), visible(value)]);
  settings.push(["prompt", count(request.prompt.length, "token")]);
  settings.push(["ended by", visible(request.reason || "interruption")]);
  byId("settings").replaceChildren(...pairs(settings));
  byId("time-card").hidden = !trace.phases.length;
  redrawWave();
  showStep(step, true);
}

function redrawWave() {
  const { clientWidth, clientHeight } = byId("wave");
  state.moveCursor = drawWave(byId("bars"), chosen(), Math.max(clientWidth, 1), Math.max(clientHeight, 1));
  state.moveCursor(state.step);
}

// What changes with the step.

function showStep(number, still = false) {
  state.step = Math.min(Math.max(number, 0), last());
  byId("slider").value = state.step;
  state.moveCursor(state.step);
  const request = chosen();
  const shown = request.steps.length ? state.step + 1 : 0;
  byId("count").replaceChildren(html("b", {}, `${shown}`), ` / ${request.steps.length}`);
  byId("previous").disabled = state.step === 0;
  byId("next").disabled = state.step >= last();
  drawStep(request, request.steps[state.step], still);
}

function drawStep(request, step, still) {
  const tree = byId("tree");
  if (!step) {
    state.layout = null;
    byId("step-title").textContent = "No steps";
    for (const id of ["step-note", "text-note", "inspect", "time-note"]) byId(id).textContent = "";
    for (const id of ["tree", "text", "table", "shares", "times"]) byId(id).replaceChildren();
    return;
  }
  const taken = takenOf(step), own = step.emitted.length - taken;
  const depth = depthsOf(step.parents).reduce((most, one) => Math.max(most, one), 0);
  byId("step-title").textContent = `Step ${state.step + 1}: ${count(step.emitted.length, "token")}`;
  byId("step-note").textContent =
    `${count(step.tokens.length - 1, "draft")}${depth ? ` up to depth ${depth}` : ""}, ${taken} accepted, ` +
    `behind ${count(step.context + 1, "token")}`;
  byId("slider").setAttribute("aria-valuetext", `step ${state.step + 1}, ${count(step.emitted.length, "token")}`);
  state.layout = layOut(step, trace.texts, measure);
  tree.classList.toggle("moving", !still);
  drawTree(tree, state.layout, step);
  const words = step.emitted.map((id) => `“${labelText(trace.texts.get(id))}”`).join(" ");
  const summary = `${count(step.tokens.length, "node")}, ${taken} accepted, ${own} of the target; emitted ${words}`;
  tree.setAttribute("aria-label", summary);
  inspect(null);
  drawText(byId("text"), request, trace.texts, state.step);
  revealLine();
  const written = request.ends[state.step] - request.prompt.length;
  byId("text-note").textContent = `${written.toLocaleString("en")} of ${count(request.emitted, "token")}`;
  state.markDepths(taken);
  if (trace.phases.length) drawTimes(byId("shares"), byId("times"), byId("time-note"), trace, request, step);
  if (byId("table-fold").open) drawTable();
  rememberPlace();
}

/** Scroll so that the ends of the line and of the text are in view. */
function revealLine() {
  byId("text").scrollTop = byId("text").scrollHeight;
  const box = byId("scroll"), { end, line } = state.layout;
  box.scrollLeft = Math.max(0, end + 24 - box.clientWidth);
  box.scrollTop = Math.max(0, line - box.clientHeight / 2);
  fadeEdges();
}

/** Where the tree goes on beyond the edge, it fades. */
function fadeEdges() {
  const { scrollLeft, clientWidth, scrollWidth, classList } = byId("scroll");
  classList.toggle("more-left", scrollLeft > 2);
  classList.toggle("more-right", scrollLeft + clientWidth < scrollWidth - 2);
}

/** Say in words what is known of a node. */
function inspect(item) {
  for (const group of byId("tree").querySelectorAll(".chosen")) group.classList.remove("chosen");
  const line = byId("inspect");
  if (!item) {
    line.textContent =
      "Choose a node to read more about it. How full it is shows the target’s own probability of its token.";
    return;
  }
  const step = chosen().steps[state.step];
  const facts = [`id ${item.token}`, `depth ${item.depth}`];
  if (item.share !== null) facts.push(`probability ${item.share}`);
  if (item.node > 0) {
    const whole = pathShares(step)[item.node];
    facts.unshift(`node ${item.node}`);
    if (whole !== null && item.depth > 1) facts.push(`whole path ${whole.toPrecision(3)}`);
  }
  const fates = {
    root: "the newest token, emitted before",
    accepted: "accepted",
    declined: "declined",
    unreached: "never reached",
    absent: "absent: no token of the vocabulary",
    own: "the target’s own",
  };
  const word = item.token < 0 ? "none" : labelText(trace.texts.get(item.token));
  line.replaceChildren(html("b", {}, word), ` ${[...facts, fates[item.fate]].join(" · ")}`);
}

function drawTable() {
  const step = chosen().steps[state.step], shares = pathShares(step);
  const head = ["node", "token", "id", "parent", "depth", "probability", "whole path", "fate"];
  const number = (share) => (share === null ? "" : share.toPrecision(4));
  const row = (item) => {
    const own = item.node < 0;
    const cells = [
      own ? "" : item.node,
      null,
      item.token,
      own ? "" : step.parents[item.node],
      item.depth,
      number(item.share),
      own ? "" : number(shares[item.node]),
      item.fate === "own" ? "the target’s own" : item.fate === "unreached" ? "never reached" : item.fate,
    ];
    const word = html("td", { class: "word" }, labelText(trace.texts.get(item.token)));
    return html("tr", {}, ...cells.map((cell) => (cell === null ? word : html("td", {}, `${cell}`))));
  };
  const titles = head.map((name) => html("th", { scope: "col", class: name === "token" ? "word" : "" }, name));
  byId("table").replaceChildren(
    html("thead", {}, html("tr", {}, ...titles)),
    html("tbody", {}, ...state.layout.nodes.map(row))
  );
}

// Playing.

function play(on) {
  clearInterval(state.timer);
  state.timer = on ? setInterval(advance, 1000 / Number(byId("speed").value)) : 0;
  document.documentElement.classList.toggle("playing", on);
  byId("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function advance() {
  if (state.step >= last()) play(false);
  else showStep(state.step + 1, Number(byId("speed").value) > 5);
}

function togglePlay() {
  if (!state.timer && state.step >= last()) showStep(0);
  play(!state.timer);
}

// The place in the address, so that a step can be passed on.

let remembering = 0;
function rememberPlace() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    try {
      history.replaceState(null, "", `#${state.request + 1}/${state.step + 1}`);
    } catch {
      // Some browsers refuse it for files; the page is none the worse for it.
    }
  }, 250);
}

function placeInAddress() {
  const [, request, step] = /^#(\d+)\/(\d+)$/.exec(location.hash) ?? [null, 1, 1];
  return [Number(request) - 1, Number(step) - 1];
}

// Hands.

function jump(number) {
  play(false);
  showStep(number);
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest("select, summary, [role=tab]")) return;
  if (event.key === " " && event.target.closest("button")) return; // it is pressed
  const far = event.shiftKey ? 10 : 1;
  const moves = {
    ArrowLeft: () => jump(state.step - far),
    ArrowRight: () => jump(state.step + far),
    Home: () => jump(0),
    End: () => jump(last()),
    " ": togglePlay,
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  moves[event.key]();
}

function onTabKey(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  play(false);
  const count = trace.requests.length;
  showRequest((state.request + step + count) % count);
  byId("tabs").children[state.request].focus();
}

function onWave(event) {
  if (event.type === "pointerdown") byId("wave").setPointerCapture(event.pointerId);
  else if (!event.buttons) return;
  const { left, width } = byId("wave").getBoundingClientRect();
  play(false);
  showStep(Math.floor(((event.clientX - left) / width) * chosen().steps.length), event.type === "pointermove");
  byId("slider").focus({ preventScroll: true });
}

function onNode(event) {
  const group = event.target.closest(".node");
  if (!group || !state.layout) return;
  const at = [...byId("tree").querySelectorAll(".node")].indexOf(group);
  inspect(state.layout.nodes[at]);
  group.classList.add("chosen");
}

function listen() {
  byId("slider").addEventListener("input", (event) => jump(Number(event.target.value)));
  byId("previous").addEventListener("click", () => jump(state.step - 1));
  byId("next").addEventListener("click", () => jump(state.step + 1));
  byId("play").addEventListener("click", togglePlay);
  byId("speed").addEventListener("change", () => state.timer && play(true));
  byId("wave").addEventListener("pointerdown", onWave);
  byId("wave").addEventListener("pointermove", onWave);
  byId("tabs").addEventListener("keydown", onTabKey);
  byId("tabs").addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) play(false), showRequest(Number(tab.dataset.request));
  });
  byId("scroll").addEventListener("scroll", fadeEdges);
  byId("tree").addEventListener("pointerover", onNode);
  byId("tree").addEventListener("click", onNode);
  byId("tree").addEventListener("pointerleave", () => inspect(null));
  byId("text").addEventListener("click", (event) => {
    const token = event.target.closest("[data-step]");
    if (token && getSelection().isCollapsed) jump(Number(token.dataset.step));
  });
  byId("table-fold").addEventListener("toggle", () => byId("table-fold").open && state.layout && drawTable());
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", () => showRequest(...placeInAddress()));
  new ResizeObserver(() => {
    redrawWave();
    if (state.layout) revealLine();
  }).observe(byId("wave"));
}

drawHead();
drawTabs();
listen();
showRequest(...placeInAddress());
document.documentElement.dataset.ready = "true";
