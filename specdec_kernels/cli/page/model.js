// From a trace to what is shown of it. Nothing here knows the document.

/** The trace as the page uses it: texts of tokens by id, requests with their figures, and those of all together. */
function readTrace(source) {
  const trace = JSON.parse(source);
  const texts = new Map(trace.tokens.ids.map((id, i) => [id, trace.tokens.texts[i]]));
  const requests = trace.requests.map(readRequest);
  const phases = Object.keys(trace.seconds);
  for (const request of requests) {
    const meanOf = (series) => request.steps.reduce((sum, { step }) => sum + series[step], 0) / request.steps.length;
    request.means = phases.map((phase) => meanOf(trace.seconds[phase]));
  }
  return { info: trace.info, texts, requests, phases, seconds: trace.seconds, all: summarize(requests) };
}

/**
 * A request with the stream of its tokens (prompt, then what was emitted), and for each of them where it came from:
 * "prompt", "draft" (a draft that was accepted) or "own" (the target's own).
 */
function readRequest({ prompt, settings, finish_reason, steps }) {
  const stream = prompt.map((id) => ({ id, origin: "prompt", step: -1, share: null }));
  const drafted = [], accepted = [], ends = [];
  const shape = { nodes: 0, emitted: 0, taken: 0 };
  steps.forEach((step, number) => {
    const reach = Math.max(...depthsOf(step.parents));
    const taken = takenOf(step);
    for (let depth = 1; depth <= reach; depth++) {
      drafted[depth - 1] = (drafted[depth - 1] ?? 0) + 1;
      accepted[depth - 1] = (accepted[depth - 1] ?? 0) + (depth <= taken ? 1 : 0);
    }
    step.emitted.forEach((id, i) => {
      const origin = i < taken ? "draft" : "own";
      stream.push({ id, origin, step: number, share: step.emitted_probabilities[i] });
    });
    ends.push(stream.length);
    shape.nodes += step.tokens.length - 1;
    shape.emitted += step.emitted.length;
    shape.taken += taken;
  });
  return { prompt, settings, reason: finish_reason, steps, stream, ends, drafted, accepted, ...shape };
}

/** Figures of several requests together. */
function summarize(requests) {
  const sum = (read) => requests.reduce((total, request) => total + read(request), 0);
  const steps = sum((request) => request.steps.length);
  const nodes = sum((request) => request.nodes);
  const emitted = sum((request) => request.emitted);
  return { steps, nodes, emitted, taken: sum((request) => request.taken), mean: steps ? emitted / steps : 0 };
}

/** Drafts of a step that came into the text: the path without its root, as far as the text goes. */
function takenOf(step) {
  return Math.min(step.path.length - 1, step.emitted.length);
}

/** Distance of each node from the root; parents stand before their children. */
function depthsOf(parents) {
  const depths = [];
  for (const parent of parents) depths.push(parent < 0 ? 0 : depths[parent] + 1);
  return depths;
}

/** What became of each node: "root", "accepted", "declined" (its parent was on the path), "unreached" or "absent". */
function fatesOf(step) {
  const onPath = new Set(step.path);
  return step.tokens.map((token, node) => {
    if (node === 0) return "root";
    if (onPath.has(node)) return "accepted";
    if (token < 0) return "absent";
    return onPath.has(step.parents[node]) ? "declined" : "unreached";
  });
}

/** Probability of each node's whole path under the target; null where a part of it is not known. */
function pathShares(step) {
  const shares = [];
  step.parents.forEach((parent, node) => {
    const before = parent < 0 ? 1 : shares[parent];
    const own = parent < 0 ? 1 : step.probabilities[node];
    shares.push(before === null || own === null ? null : before * own);
  });
  return shares;
}

/** A probability for people. */
function percent(share) {
  if (share === null) return "";
  if (share >= 0.9995 || share === 0) return `${100 * share === 0 ? 0 : 100}%`;
  if (share >= 0.0995) return `${Math.round(100 * share)}%`;
  return share >= 0.0005 ? `${(100 * share).toFixed(1)}%` : "<0.1%";
}

/** "1 token", "2 tokens". */
function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
