import {
  axis, change, chart, checkbox, clamp, experiments, fill, follow, format, h, handle, html, linear, logarithmic, marker, path,
  place, s, set, short, slider, table, unique,
} from "./kit.js";

// ---- arithmetic: the same numbers as placement_explorer.py -----------------------------------------------

const TOKENS = ["ha", "ho", "hi", "hm"];
const KINDS = ["k1", "k2", "k3"];
const GRID = Array.from({ length: 161 }, (_, i) => i / 16 - 5);
const ESTIMATORS = [
  { value: (d) => d, slope: () => 1 },
  { value: (d) => (d * d) / 2, slope: (d) => d },
  { value: (d) => Math.expm1(-d) + d, slope: (d) => -Math.expm1(-d) },
];
const sum = (values) => values.reduce((total, value) => total + value, 0);
const ZERO = 1e-12; // lengths below are rounding
const size = (vector) => (Math.hypot(...vector) <= ZERO ? 0 : Math.hypot(...vector));

// What multiplies ∇log π of a token with log-ratio d and ratio rho.
function weigh({ value, slope }, d, rho, { place: where, correction, clamp: limit }) {
  const worth = value(clamp(d, -limit, limit));
  if (where === "reward") return (correction === "none" ? 1 : rho) * worth;
  const own = Math.abs(d) <= limit ? slope(d) : 0;
  if (correction === "none") return own;
  return rho * (correction === "stopgrad" ? own : own + worth);
}

// PPO's push on log π: nothing where the ratio is out of the interval and would be pushed further.
const silent = (rho, advantage, eps) => (rho > 1 + eps && advantage > 0) || (rho < 1 - eps && advantage < 0);
const ppo = (rho, advantage, eps) => (silent(rho, advantage, eps) ? 0 : rho * advantage);

function degrees(one, other) {
  if (!size(one) || !size(other)) return NaN;
  const [u, v] = [one, other].map((vector) => vector.map((x) => x / size(vector)));
  const [apart, along] = [-1, 1].map((sign) => Math.hypot(...u.map((x, i) => x + sign * v[i])));
  const angle = (2 * Math.atan2(apart, along) * 180) / Math.PI;
  return angle < 1e-6 ? 0 : angle; // below is rounding
}

export function compute(state) {
  const { log_rho, advantage, beta, clip_eps } = state;
  const at = TOKENS.indexOf(state.token);
  const [policy, ref] = [state.policy, state.ref].map((list) => list.map((p) => p / sum(list)));
  const rho = Math.exp(log_rho);
  const drawn = policy[at] / rho;
  const rest = (1 - drawn) / (1 - policy[at]);
  const old = log_rho === 0 ? policy : policy.map((p, i) => (i === at ? drawn : p * rest));
  const log_ratios = policy.map((p, i) => Math.log(p / ref[i]));
  const kl = sum(policy.map((p, i) => p * log_ratios[i]));
  const weights = ESTIMATORS.map((k) => log_ratios.map((d, i) => weigh(k, d, log_rho === 0 ? 1 : i === at ? rho : 1 / rest, state)));
  const gradient = weights.map((row) => {
    const mean = sum(row.map((w, i) => old[i] * w));
    return row.map((w, i) => old[i] * w - policy[i] * mean);
  });
  const true_gradient = policy.map((p, i) => p * (log_ratios[i] - kl));
  const log_ratio = log_ratios[at];
  const net = advantage - beta * log_ratio;
  const push_score = ppo(rho, advantage, clip_eps);
  return {
    old,
    rho,
    log_ratio,
    log_ratios,
    kl,
    weight: weights.map((row) => row[at]),
    weights,
    true_weight: rho * log_ratio,
    curve: ESTIMATORS.map((k) => GRID.map((d) => weigh(k, d, rho, state))),
    true_curve: GRID.map((d) => rho * d),
    gradient,
    true_gradient,
    angle: gradient.map((row) => degrees(row, true_gradient)),
    length: gradient.map((row) => (size(true_gradient) ? size(row) / size(true_gradient) : NaN)),
    net,
    push_reward: ppo(rho, net, clip_eps),
    push_score,
    push_loss: push_score + beta * Math.expm1(-log_ratio),
  };
}

// ---- words ----------------------------------------------------------------------------------------------

const STATE = {
  policy: [0.6, 0.3, 0.1], ref: [0.1, 0.4, 0.5], token: "ha", place: "loss", correction: "none", log_rho: 0, clamp: 5,
  advantage: 1, beta: 0.3, clip_eps: 0.2, show_k1: true, show_k2: true, show_k3: true,
};
const START = { 2: [[0.7, 0.3], [0.3, 0.7]], 3: [STATE.policy, STATE.ref], 4: [[0.5, 0.25, 0.2, 0.05], [0.1, 0.2, 0.3, 0.4]] };
const NAMES = ["<i>k</i>₁", "<i>k</i>₂", "<i>k</i>₃"];

// The weight on ∇log π as a formula, and the mean gradient as the name that atlas.name_gradient finds.
const FORMULAS = {
  loss: {
    none: ["1", "δ", "1 − e<sup>−δ</sup>"],
    stopgrad: ["ρ", "ρ δ", "ρ (1 − e<sup>−δ</sup>)"],
    differentiable: ["ρ (1 + δ)", "ρ (δ + ½δ²)", "ρ δ"],
  },
  reward: { none: ["δ", "½ δ²", "e<sup>−δ</sup> − 1 + δ"], stopgrad: ["ρ δ", "½ ρ δ²", "ρ (e<sup>−δ</sup> − 1 + δ)"] },
};
const [REVERSE, FORWARD] = ["∇KL(π‖ref)", "∇KL(ref‖π)"];
const FIELDS = {
  "loss fresh": ["0", REVERSE, FORWARD],
  "loss stale": ["−∇KL(old‖π)", "∇E_old[k2]", "∇E_old[k3]"],
  "loss differentiable": [REVERSE, "∇½E[log²]", REVERSE],
  "reward fresh": [REVERSE, `∇½E[log²] − ${REVERSE}`, `${REVERSE} − ${FORWARD}`],
  "reward stale": ["∇E_old[k2]", "none of a KL", "none of a KL"],
};

function fields({ place: where, correction, log_rho, clamp: limit }, { log_ratios }) {
  if (log_ratios.some((d) => Math.abs(d) > limit)) return KINDS.map(() => "cut by the clamp");
  if (where === "loss" && correction === "differentiable") return FIELDS["loss differentiable"];
  return FIELDS[`${where} ${correction === "none" && log_rho !== 0 ? "stale" : "fresh"}`];
}

const TRY = [
  {
    title: "k₃ hears what is missing, not what is too much.",
    text:
      "<i>ha</i> stands 2.5 nats too high. In the loss, <i>k</i>₃ resists with 0.92 where 2.53 would be right. " +
      "<i>hi</i> stands 4.3 nats too low: −72 for −4.3. The mean step is 91° off: it makes KL(π‖ref) larger. Now " +
      "switch to the reward: there <i>k</i>₃ is never negative, and punishes every draw, that of <i>hi</i> hardest, with 67.7.",
    state: { ...STATE, policy: [0.25, 0.74, 0.01], ref: [0.02, 0.25, 0.73] },
  },
  {
    title: "A clamp lets go of the tokens that need it.",
    text:
      "<i>ha</i> stands 2.0 nats too high and <i>ho</i> 2.7 too low. Both are beyond the clamp, so in the loss their " +
      "weight is 0. What is left of <i>k</i>₂ pushes <i>hi</i> down, and by that <i>ha</i> up: 159° off. In the reward " +
      "the same clamp cuts the cost and keeps the pull: <i>k</i>₁ weighs 1.5 on <i>ha</i> and is 2.4° off.",
    state: { ...STATE, policy: [0.57, 0.04, 0.39], ref: [0.08, 0.6, 0.32], clamp: 1.5 },
  },
  {
    title: "PPO's clip silences the KL too, if the KL is in the reward.",
    text:
      "<i>ha</i> has become 1.5 times as likely and stands 1.8 nats too high, yet PPO does not pull it back: the score " +
      "outweighs the KL, and the clip drops both. <i>k</i>₃ in the loss stands outside and pulls with −0.25. Drag the " +
      "point down to <i>A</i> = 0.4, below βδ = 0.54: now PPO pulls with −0.21, and would not without the KL.",
    state: { ...STATE, log_rho: 0.4 },
  },
];

const out = (name, digits = 3) => `<output data-number="${name}" data-digits="${digits}"></output>`;
const live = (name) => `<span class="kl-live" data-live="${name}"></span>`;
const READINGS = `
<p><b class="kl-live" data-live="token"></b>: <var>δ</var> = log π − log ref = log ${live("p")} − log ${live("r")} = ${out("log_ratio")} nats,
<var>ρ</var> = π / old = ${out("rho")}</p>
<table class="kl-pe-readings"><thead><tr><td></td><th scope="col">weight on ∇ log π</th><th scope="col">mean gradient</th><th scope="col">off by, × length</th></tr></thead><tbody>
${KINDS.map(
  (kind, k) => `<tr><th scope="row" class="kl-word kl-${kind}">${NAMES[k]}</th><td><span data-formula></span> = ${out(`weight.${k}`)}</td>
<td><span data-field></span></td><td>${out(`angle.${k}`, 1)}<span data-degrees></span>${out(`length.${k}`, 2)}</td></tr>`,
).join("")}
<tr><th scope="row" class="kl-word kl-exact">true</th><td>ρ δ = ${out("true_weight")}</td><td>${REVERSE}</td><td></td></tr></tbody></table>`;

const CLIP = `
<p><b>PPO, β <i>k</i>₁ in the reward.</b> The clip sees<br><var>A</var> − βδ = ${live("advantage")} − ${live("beta")} · ${out("log_ratio")} = ${out("net")},
at ρ = ${out("rho")}. Push on log π: ${out("push_reward")} <span data-verdict="reward"></span></p>
<p><b>GRPO, β <i>k</i>₃ in the loss.</b> The clip sees <var>A</var> alone: ${out("push_score")} <span data-verdict="score"></span><br>
Less β (1 − e<sup>−δ</sup>), which is never clipped. Push on log π: ${out("push_loss")}</p>`;

// ---- changes --------------------------------------------------------------------------------------------

// Give one token a probability and let the others share the rest as before; none falls below one in a hundred.
function share(list, i, wanted) {
  const floor = Math.min(0.01, ...list);
  const most = 1 - (floor * (1 - list[i])) / Math.min(...list.filter((_, j) => j !== i));
  const p = clamp(wanted, floor, most);
  return list.map((q, j) => (j === i ? p : (q * (1 - p)) / (1 - list[i])));
}

// Set something, and keep old a distribution: it cannot have given the token more than 0.99.
function move(model, values) {
  const next = { token: model.get("token"), policy: model.get("policy"), log_rho: model.get("log_rho"), ...values };
  const least = Math.log(next.policy[TOKENS.indexOf(next.token)] / 0.99);
  if (next.log_rho < least) values = { ...values, log_rho: Math.min(least, 0) };
  change(model, values);
}

const setPolicy = (model, i, p) => move(model, { token: TOKENS[i], policy: share(model.get("policy"), i, p) });

function radios(legend, options, pick) {
  const name = unique("choice");
  const inputs = options.map(([value]) => h("input", { type: "radio", name, value, change: () => pick(value) }));
  const labels = options.map(([, text], i) => h("label", { class: "kl-check" }, inputs[i], html(text)));
  const node = h("fieldset", { class: "kl-pe-choice" }, h("legend", {}, legend), ...labels);
  return { node, update: (value) => inputs.forEach((input) => (input.checked = input.value === String(value))) };
}

function render({ model, el }) {
  const pick = (name) => (value) => change(model, { [name]: value });
  const tokens = radios("tokens", [["2", "2"], ["3", "3"], ["4", "4"]], (n) => {
    const [policy, ref] = START[n];
    change(model, { policy, ref, token: TOKENS[0], log_rho: 0 });
  });
  const where = radios("the KL stands", [["loss", "in the loss"], ["reward", "in the reward"]], pick("place"));
  const ratio = radios(
    "ratio ρ",
    [["none", "none"], ["stopgrad", "held fixed"], ["differentiable", "differentiated"]],
    pick("correction"),
  );
  const shown = KINDS.map((kind, k) => checkbox({ label: h("span", { class: `kl-word kl-${kind}` }, html(NAMES[k])), change: pick(`show_${kind}`) }));
  const seen = h("fieldset", { class: "kl-pe-choice" }, h("legend", {}, "shown"), ...shown.map(({ node }) => node));
  const stale = slider({
    label: "log ρ of the token [nats]", min: -1.5, max: 1.5, step: 0.05,
    spoken: (value) => (value === 0 ? "0: fresh samples" : `log ρ = ${format(value, 2)}`),
    change: (value) => move(model, { log_rho: value }),
  });
  const beta = slider({
    label: "β, the price of a nat in reward", min: 0, max: 1, step: 0.01, spoken: (value) => `β = ${short(value)}`,
    change: pick("beta"),
  });
  const panels = [drawWeights(model), drawTokens(model)];
  const clip = drawClip(model);
  const captions = [
    "Drag the tokens along the log-ratio, and the clamp inwards. Markers: weights of the token last touched.",
    "Drag policy and reference. Bars: the exact mean step. It should end on the dotted marks.",
  ];
  const figure = ({ node }, text) => h("figure", {}, node, h("figcaption", {}, html(text)));
  const [formula, clipped] = [READINGS, CLIP].map((markup) => h("div", { class: "kl-formula" }, html(markup)));
  const data = table("Each token", ["token", "policy", "ref", "old", "log-ratio", ...KINDS.map((kind) => `weight ${kind}`), ...KINDS.map((kind) => `mean gradient ${kind}`), "true gradient"]);

  el.classList.add("kl-root");
  el.append(
    h("div", { class: "kl-pe-choices" }, where.node, ratio.node),
    h("div", { class: "kl-pe-choices" }, seen, tokens.node, stale.node),
    h("div", { class: "kl-panels" }, ...panels.map((panel, i) => figure(panel, captions[i]))),
    formula,
    h(
      "div",
      { class: "kl-panels kl-pe-clip" },
      figure(clip, "One draw of the same token, and the pushes on it. Drag the point and the edge of the clip. Shaded: PPO with the KL in the reward has no gradient. Dotted: where the score alone has none."),
      h("div", {}, beta.node, clipped),
    ),
    experiments(model, TRY),
    data.node,
  );
  return follow(model, Object.keys(STATE), (state) => {
    if (state.policy.length !== state.ref.length || !(TOKENS.indexOf(state.token) < state.ref.length)) return; // half set
    const numbers = compute(state);
    tokens.update(state.ref.length);
    where.update(state.place);
    ratio.update(state.correction);
    shown.forEach((box, k) => box.update(state[`show_${KINDS[k]}`]));
    stale.update(state.log_rho);
    beta.update(state.beta);
    [...panels, clip].forEach(({ update }) => update(state, numbers));
    fill(el, numbers);
    write(el, state, numbers);
    data.update(
      state.ref.map((q, i) => [
        TOKENS[i], state.policy[i], q, numbers.old[i], numbers.log_ratios[i],
        ...numbers.weights.map((row) => row[i]), ...numbers.gradient.map((row) => row[i]), numbers.true_gradient[i],
      ]),
    );
  });
}

// What changes in the formulas beside the numbers.
function write(el, state, numbers) {
  const { token, policy, ref, place: where, correction, clamp: limit, advantage, beta, clip_eps } = state;
  const at = TOKENS.indexOf(token);
  const words = { token, p: format(policy[at], 3), r: format(ref[at], 3), advantage: format(advantage, 2), beta: short(beta) };
  for (const node of el.querySelectorAll("[data-live]")) set(node, { text: words[node.dataset.live] });
  const kind = where === "reward" && correction === "differentiable" ? "stopgrad" : correction;
  const cut = Math.abs(numbers.log_ratio) > limit;
  const fell = cut && where === "loss" && correction !== "differentiable";
  const names = fields(state, numbers);
  el.querySelectorAll("[data-formula]").forEach((node, k) => {
    const formula = fell ? "clamped" : FORMULAS[where][kind][k] + (cut ? ", clamped" : "");
    if (node.dataset.formula !== formula) node.replaceChildren(html(formula));
    node.dataset.formula = formula;
  });
  el.querySelectorAll("[data-field]").forEach((node, k) => set(node, { text: names[k] }));
  el.querySelectorAll("[data-degrees]").forEach((node, k) => {
    const none = Number.isNaN(numbers.angle[k]);
    set(node, { text: none ? "no direction, × " : "°, × " });
    set(node.previousElementSibling, { hidden: none });
  });
  const verdicts = { reward: numbers.net, score: advantage };
  for (const node of el.querySelectorAll("[data-verdict]")) {
    const dead = silent(numbers.rho, verdicts[node.dataset.verdict], clip_eps);
    set(node, { text: dead ? `(clipped: ρ ${numbers.rho > 1 ? ">" : "<"} ${format(1 + (numbers.rho > 1 ? clip_eps : -clip_eps), 2)})` : "(alive)" });
  }
}

// ---- the pictures ---------------------------------------------------------------------------------------

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 376, 44, 332, 30, 238];
const word = (kind, text, attributes = {}) => s("text", { class: `kl-word kl-${kind}`, text, ...attributes });
const note = (text, attributes = {}) => s("text", { class: "kl-pe-note", text, ...attributes });
const visible = (state, k) => (state[`show_${KINDS[k]}`] ? null : "none");

// Show the parts of so many tokens; what a reader has the focus on stays.
function hold(group, parts, n) {
  if (group.childElementCount !== n) group.replaceChildren(...parts.slice(0, n).map(({ node }) => node));
}

// Weight against log-ratio, with a lane for each token under it and the clamp on top.
function drawWeights(model) {
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "The weight of k1, k2 and k3 on the score function against the log-ratio, with the log-ratio of each token" });
  const [across, up] = [linear([-5, 5], [LEFT, RIGHT]), linear([-5, 5], [BOTTOM, TOP])];
  const [xAxis, yAxis] = [axis("x", { at: BOTTOM, title: "log-ratio  δ = log π − log ref  [nats]", count: 5 }), axis("y", { at: LEFT, title: "weight on ∇ log π", grid: RIGHT - LEFT, count: 5 })];
  xAxis.update(across);
  yAxis.update(up);
  const id = unique("weights");
  const inside = s("g", { "clip-path": `url(#${id})` });
  const dead = [s("rect", { class: "kl-pe-dead", x: LEFT, y: TOP, height: BOTTOM - TOP }), s("rect", { class: "kl-pe-dead", y: TOP, height: BOTTOM - TOP })];
  const [truth, edge, limitWord] = [s("path", { class: "kl-line kl-exact" }), s("path", { class: "kl-pe-edge" }), note("", { y: up(-4) + 4 })];
  const key = [["k1", "○ k₁", 164], ["k2", "□ k₂", 204], ["k3", "△ k₃", 244], ["exact", "┅ true", 284]].map(([kind, text, x]) => word(kind, text, { x, y: TOP - 10 }));
  const curves = KINDS.map((kind) => s("path", { class: `kl-line kl-${kind}` }));
  const guide = s("path", { class: "kl-pe-guide" });
  inside.append(...dead, edge, s("path", { class: "kl-pe-zero", d: `M${LEFT} ${up(0)}H${RIGHT}` }), ...curves, truth);
  const spots = KINDS.map((kind, k) => {
    const value = s("text", { class: `kl-word kl-${kind}`, y: 4 });
    return { value, node: s("g", {}, marker(kind, 5), value), k };
  });
  const used = s("g");
  const limit = handle({
    label: "clamp of the log-ratio", min: 0.5, max: 5, step: 0.05, page: 0.5, vertical: false, shape: s("path", { class: "kl-pe-grip", d: "M0 -8L7 0L0 8L-7 0Z" }),
    at: ({ x }) => Math.abs(across.invert(x)), change: (value) => change(model, { clamp: value }),
  });
  const lanes = TOKENS.map((name, i) => {
    const y = BOTTOM + 56 + 24 * i;
    const stem = s("line", { class: "kl-pe-stem", x1: across(0), y1: y, y2: y });
    const label = s("text", { class: "kl-name", x: 14, y: y + 4, text: name });
    const grip = handle({
      label: `log-ratio of ${name}`, min: -4.8, max: 4.8, step: 0.05, page: 0.5, vertical: false, shape: marker("policy", 7),
      at: ({ x }) => across.invert(x), change: (value) => setPolicy(model, i, model.get("ref")[i] * Math.exp(value)),
    });
    const choose = () => move(model, { token: name });
    set(grip.node, { pointerdown: choose, keydown: (event) => event.key === "Enter" && choose() });
    return { y, stem, label, grip, node: s("g", {}, s("line", { class: "kl-pe-lane", x1: LEFT, x2: RIGHT, y1: y, y2: y }), stem, label, grip.node) };
  });
  node.append(
    s("clipPath", { id }, s("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP })),
    xAxis.node, yAxis.node, ...key, inside, limitWord, guide, ...spots.map((spot) => spot.node), used, limit.node,
  );
  const update = (state, { curve, true_curve, log_ratio, log_ratios, weight }) => {
    hold(used, lanes, log_ratios.length);
    const cut = [across(-state.clamp), across(state.clamp)];
    set(dead[0], { width: cut[0] - LEFT });
    set(dead[1], { x: cut[1], width: RIGHT - cut[1] });
    const side = (d) => (Math.abs(d) <= state.clamp ? 0 : Math.sign(d)); // the pen is lifted where the clamp cuts
    const trace = (values) => path(values.flatMap((w, i) => (i && side(GRID[i]) !== side(GRID[i - 1]) ? [[NaN, NaN]] : []).concat([[across(GRID[i]), clamp(up(w), TOP - 99, BOTTOM + 99)]])));
    curves.forEach((line, k) => set(line, { d: trace(curve[k]), display: visible(state, k) }));
    set(truth, { d: path(true_curve.map((w, i) => [across(GRID[i]), up(w)])) });
    const at = TOKENS.indexOf(state.token);
    set(guide, { d: `M${across(log_ratio).toFixed(2)} ${TOP}V${BOTTOM}M${across(log_ratio).toFixed(2)} ${BOTTOM + 40}V${lanes[at].y}` });
    spots.forEach(({ node: spot, value, k }) => {
      const off = Math.abs(weight[k]) > 5;
      place(spot, across(log_ratio), clamp(up(weight[k]), TOP, BOTTOM));
      set(spot, { display: visible(state, k) });
      set(value, { text: off ? format(weight[k], 1) : "", x: log_ratio > 3 ? -9 : 9, "text-anchor": log_ratio > 3 ? "end" : "start" });
    });
    const says = state.clamp < 5 ? `clamp ±${format(state.clamp, 2)}` : "no clamp";
    limit.update(cut[1], up(-4), state.clamp, says);
    set(limitWord, { x: cut[1] + (state.clamp > 2.5 ? -14 : 14), "text-anchor": state.clamp > 2.5 ? "end" : "start", text: says });
    set(edge, { d: `M${cut[0]} ${TOP}V${BOTTOM}M${cut[1]} ${TOP}V${BOTTOM}` });
    lanes.slice(0, log_ratios.length).forEach(({ stem, y, label, grip }, i) => {
      set(stem, { x2: across(log_ratios[i]) });
      set(label, { "font-weight": i === at ? 700 : 400 });
      grip.update(across(log_ratios[i]), y, log_ratios[i], `${format(log_ratios[i], 2)} nats`);
    });
  };
  return { node, update };
}

// Probabilities on a logarithmic axis, where a log-ratio is a height; under them the mean step on each logit.
function drawTokens(model) {
  const [foot, zero, half] = [160, 276, 64];
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "The probability of each token under policy and reference, and the mean step on its logit with k1, k2 and k3" });
  const up = logarithmic([1 / 128, 1], [foot, TOP]);
  const [chances, steps] = [axis("y", { at: LEFT, title: "probability", grid: RIGHT - LEFT }), axis("y", { at: LEFT, title: "mean step on the logit  [nats per logit]", grid: RIGHT - LEFT, count: 4 })];
  chances.update(up);
  const columns = TOKENS.map((name, i) => {
    const grip = (list, kind, change_) =>
      handle({
        label: `${kind} probability of ${name}`, min: -4.6, max: -0.02, step: 0.02, page: 0.2, shape: marker(kind, 6),
        at: ({ y }) => Math.log(up.invert(y)), change: (value) => change_(model, i, Math.exp(value)),
      });
    const parts = {
      stem: s("path", { class: "kl-pe-stem" }),
      old: s("path", { class: "kl-pe-old", d: "M-9 0H9" }),
      bars: KINDS.map((kind) => s("rect", { class: `kl-bar kl-${kind}` })),
      truth: s("path", { class: "kl-pe-truth" }),
      name: s("text", { class: "kl-name", y: zero + half + 18, "text-anchor": "middle", text: name }),
      ref: grip("ref", "reference", setRef),
      policy: grip("policy", "policy", setPolicy),
    };
    const { stem, old, bars, truth, name: label, ref, policy } = parts;
    return { ...parts, node: s("g", {}, stem, ...bars, truth, label, old, ref.node, policy.node) };
  });
  const used = s("g");
  const legend = [["reference", "■ ref", 176], ["policy", "● policy", 222]].map(([kind, text, x]) => word(kind, text, { x, y: TOP - 10 }));
  const oldWord = note("– old", { x: 286, y: TOP - 10 });
  const names = [...KINDS.map((kind, k) => word(kind, ["k₁", "k₂", "k₃"][k], { x: 96 + 44 * k, y: HEIGHT - 4 })), word("exact", "┅ true", { x: 232, y: HEIGHT - 4 })];
  const keys = KINDS.map((kind, k) => s("rect", { class: `kl-bar kl-${kind}`, x: 82 + 44 * k, y: HEIGHT - 14, width: 10, height: 10 }));
  node.append(chances.node, steps.node, s("path", { class: "kl-pe-zero", d: `M${LEFT} ${zero}H${RIGHT}` }), used, ...legend, oldWord, ...names, ...keys);
  let drawn = 0;
  const update = (state, { gradient, true_gradient, old, log_ratios }) => {
    const n = log_ratios.length;
    const seen = gradient.filter((_, k) => state[`show_${KINDS[k]}`]).concat([true_gradient]);
    const most = 2 ** Math.ceil(Math.log2(Math.max(1 / 16, ...seen.flat().map(Math.abs))));
    const height = linear([-most, most], [zero + half, zero - half]);
    if (most !== drawn) steps.update(height);
    drawn = most;
    const [wide, bar] = [(RIGHT - LEFT) / n, Math.min(18, (0.8 * (RIGHT - LEFT)) / n / 3)];
    set(oldWord, { display: state.log_rho === 0 ? "none" : null });
    hold(used, columns, n);
    columns.slice(0, n).forEach(({ stem, old: before, bars, truth, name, ref, policy }, i) => {
      const middle = LEFT + wide * (i + 0.5);
      const [q, p] = [up(state.ref[i]), up(state.policy[i])];
      set(stem, { d: `M${middle - 13} ${q}H${middle + 13}V${p}` });
      ref.update(middle - 13, q, Math.log(state.ref[i]), format(state.ref[i], 3));
      policy.update(middle + 13, p, Math.log(state.policy[i]), format(state.policy[i], 3));
      place(before, middle + 13, up(clamp(old[i], 1 / 128, 1)));
      set(before, { display: state.log_rho === 0 ? "none" : null });
      bars.forEach((rect, k) => {
        const to = height(-gradient[k][i]);
        set(rect, { x: middle + (k - 1.5) * bar + 1.5, width: bar - 3, y: Math.min(zero, to), height: Math.abs(to - zero), display: visible(state, k) });
      });
      set(truth, { d: `M${middle - 1.5 * bar - 5} ${height(-true_gradient[i]).toFixed(2)}h${3 * bar + 10}` });
      set(name, { x: middle, "font-weight": TOKENS[i] === state.token ? 700 : 400 });
    });
  };
  return { node, update };
}

const setRef = (model, i, p) => move(model, { token: TOKENS[i], ref: share(model.get("ref"), i, p) });

// The plane of ratio and advantage: where PPO's clip leaves no gradient, with the KL in the advantage and without.
function drawClip(model) {
  const [bottom, height] = [250, 292];
  const node = chart({ width: WIDTH, height, interactive: true, label: "Ratio and advantage of one token: where the clip leaves no gradient" });
  const [across, up] = [logarithmic([Math.exp(-1.5), Math.exp(1.5)], [LEFT, RIGHT]), linear([-2, 2], [bottom, TOP])];
  const [xAxis, yAxis] = [axis("x", { at: bottom, title: "ρ = π / old of the token" }), axis("y", { at: LEFT, title: "A, advantage from the score alone", grid: RIGHT - LEFT, count: 4 })];
  xAxis.update(Object.assign((v) => across(v), { range: across.range, ticks: () => [0.25, 0.5, 1, 2, 4] }));
  yAxis.update(up);
  const dead = [0, 1].map(() => s("rect", { class: "kl-pe-dead" }));
  const plain = s("path", { class: "kl-line kl-exact" });
  const [edges, level] = [s("path", { class: "kl-pe-edge" }), s("path", { class: "kl-line kl-k1" })];
  const says = word("k1", "A = βδ", { x: LEFT + 6 });
  const pushes = ["k1", "k3"].map((kind) => s("text", { class: `kl-word kl-${kind} kl-pe-push` }));
  const silence = [note("silent", { x: RIGHT - 6, y: TOP + 18, "text-anchor": "end" }), note("silent", { x: LEFT + 6, y: bottom - 10 })];
  const words = [note("1 − ε", { "text-anchor": "end" }), note("1 + ε")];
  const eps = handle({
    label: "half width ε of the clip", min: 0.05, max: 0.5, step: 0.01, page: 0.1, vertical: false, shape: s("path", { class: "kl-pe-grip", d: "M0 -8L7 0L0 8L-7 0Z" }),
    at: ({ x }) => across.invert(x) - 1, change: (value) => change(model, { clip_eps: value }),
  });
  let ratio = null; // where a drag has brought the point sideways
  const point = handle({
    label: "advantage from the score", min: -2, max: 2, step: 0.05, page: 0.5, shape: marker("policy", 7),
    at: ({ x, y }) => {
      ratio = clamp(Math.round(20 * Math.log(across.invert(x))) / 20, -1.5, 1.5);
      return up.invert(y);
    },
    change: (value) => {
      move(model, { advantage: value, ...(ratio === null ? {} : { log_rho: ratio }) });
      ratio = null;
    },
  });
  node.append(...dead, xAxis.node, yAxis.node, edges, level, plain, says, ...silence, ...words, ...pushes, eps.node, point.node);
  const update = ({ clip_eps, beta, advantage }, { rho, log_ratio, net, push_reward, push_loss }) => {
    const [low, high] = [across(1 - clip_eps), across(1 + clip_eps)];
    const middle = up(clamp(beta * log_ratio, -2, 2));
    set(dead[0], { x: high, y: TOP, width: RIGHT - high, height: middle - TOP });
    set(dead[1], { x: LEFT, y: middle, width: low - LEFT, height: bottom - middle });
    set(edges, { d: `M${low} ${TOP}V${bottom}M${high} ${TOP}V${bottom}` });
    set(level, { d: `M${LEFT} ${middle}H${RIGHT}` });
    set(plain, { d: `M${high} ${TOP}V${up(0)}H${RIGHT}M${LEFT} ${up(0)}H${low}V${bottom}` });
    set(says, { y: middle - 6 });
    place(words[0], low - 5, TOP + 14);
    place(words[1], high + 14, up(-1.5) + 4);
    set(silence[0], { display: middle - TOP > 26 ? null : "none" });
    set(silence[1], { display: bottom - middle > 26 ? null : "none" });
    eps.update(high, up(-1.5), clip_eps, `ε = ${format(clip_eps, 2)}`);
    [`PPO ${format(push_reward + 0, 2)}`, `GRPO ${format(push_loss, 2)}`].forEach((text, i) => {
      const end = rho > 1.6;
      set(pushes[i], { text, x: across(rho) + (end ? -13 : 13), y: clamp(up(advantage), TOP + 14, bottom - 16) - 3 + 15 * i, "text-anchor": end ? "end" : "start" });
    });
    const dumb = silent(rho, net, clip_eps) ? "silent" : "alive";
    point.update(across(rho), up(advantage), advantage, `A = ${format(advantage, 2)} at ρ = ${format(rho, 2)}, with the KL in the reward ${dumb}`);
  };
  return { node, update };
}

export default { render };
