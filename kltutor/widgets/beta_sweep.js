import {
  axis, change, chart, checkbox, draggable, experiments, fill, follow, format, h, handle, html, linear, logarithmic,
  marker, path, place, s, set, short, slider, table,
} from "./kit.js";

// ---- arithmetic: the same numbers as beta_sweep.py -----------------------------------------------------

const BETAS = Array.from({ length: 121 }, (_, i) => 10 ** (-3 + i / 20));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const dot = (a, b) => sum(a.map((value, i) => value * b[i]));

// π*, log Z, its reward and its KL to ref. Tilts are measured from the mean where they are small and from the
// best where they are large, and a term of the KL is p·(e^−d − 1 + d), so that both ends keep their digits.
function optimum(ref, reward, beta) {
  const mean = dot(ref, reward);
  const small = Math.max(...reward.map((r) => Math.abs(r - mean))) / beta < 1;
  const origin = small ? mean : Math.max(...reward);
  const tilt = reward.map((r) => (r - origin) / beta);
  const shifted = small
    ? Math.log1p(dot(ref, tilt.map(Math.expm1)))
    : Math.log(dot(ref, tilt.map(Math.exp)));
  const ratio = tilt.map((t) => t - shifted);
  const star = ref.map((p, i) => p * Math.exp(ratio[i]));
  const terms = ratio.map((d, i) => (Math.abs(d) < 1 ? star[i] * (Math.expm1(-d) + d) : ref[i] - star[i] + (star[i] && star[i] * d)));
  const gain = dot(star, reward.map((r) => r - origin));
  return {
    star,
    log_z: origin / beta + shifted,
    expected_reward: origin + gain,
    kl: sum(terms),
    value: origin + beta * shifted,
  };
}

// β·ref/(λ − r). With λ = max r + x the masses fall and are convex in x, so Newton climbs to the root from below.
function rational(ref, reward, beta) {
  const top = Math.max(...reward);
  const gap = reward.map((r) => top - r);
  let x = beta * sum(ref.filter((_, i) => gap[i] === 0));
  for (let round = 0; round < 200; round++) {
    const mass = ref.map((p, i) => (beta * p) / (gap[i] + x));
    const step = (sum(mass) - 1) / sum(mass.map((m, i) => m / (gap[i] + x)));
    if (!(step > 1e-16 * x)) break;
    x += step;
  }
  return { tilt: ref.map((p, i) => (beta * p) / (gap[i] + x)), tilt_lambda: top + x };
}

export function compute({ beta, reward, ref: given }) {
  const total = sum(given);
  const ref = given.map((p) => p / total);
  const now = optimum(ref, reward, beta);
  const { tilt, tilt_lambda } = rational(ref, reward, beta);
  const edge = BETAS.map((b) => optimum(ref, reward, b));
  const top = Math.max(...reward);
  const lost = (policy) => sum(policy.filter((_, i) => reward[i] < top));
  const tilt_reward = dot(tilt, reward);
  const tilt_kl = sum(tilt.map((p, i) => p * Math.log(p / ref[i])));
  return {
    ...now,
    tilt,
    tilt_lambda,
    tilt_reward,
    tilt_kl,
    tilt_value: tilt_reward - beta * tilt_kl,
    losers: lost(now.star),
    tilt_losers: lost(tilt),
    kl_bound: -Math.log(sum(ref.filter((_, i) => reward[i] === top))),
    ref_reward: dot(ref, reward),
    frontier_kl: edge.map((point) => point.kl),
    frontier_reward: edge.map((point) => point.expected_reward),
  };
}

// ---- the picture ----------------------------------------------------------------------------------------

const LIMIT = { min: 1e-3, max: 1e3 };
const [WIDTH, HEIGHT, LEFT, RIGHT] = [340, 330, 44, 332];
const STRIP = { top: 26, bottom: 106 }; // rewards
const BARS = { top: 148, bottom: 278 }; // probabilities
const KINDS = ["reference", "optimum", "k3"];
const FLOOR = 1e-12; // the foot of the logarithmic axis

const TRY = [
  {
    title: "Who keeps the losers?",
    text:
      "At β = 0.01 the optimum leaves 6·10⁻¹³ to all answers but the best. The rational tilt, where " +
      "<i>k</i><sub>3</sub> as a loss comes to rest, leaves 0.019, and gives it up only in proportion to β. " +
      "Now raise β to 0.2: there the tilt is the greedier of the two.",
    state: { beta: 0.01, log_scale: true, reward: [0.2, 0.5, 0.7, 0.6, 1] },
  },
  {
    title: "A hair decides everything and is worth next to nothing.",
    text:
      "Nats are almost free. Drag <i>great</i> from 0.87 to 0.93, across <i>wow!!!</i>: the KL falls from 3.51 to " +
      "1.71 nats and nearly every answer is another one, yet J gains 0.03.",
    state: { beta: 0.002, log_scale: false, reward: [0.2, 0.5, 0.87, 0.6, 0.9] },
  },
  {
    title: "Nats that cannot be spent.",
    text:
      "Here the likeliest answer is the best. However cheap a nat, the optimum never spends more than " +
      "−log 0.4 = 0.92 of them. Drag <i>fine</i> below <i>wow!!!</i>: now the frontier reaches −log 0.03 = 3.51.",
    state: { beta: 0.02, log_scale: false, reward: [1, 0.5, 0.7, 0.6, 0.9] },
  },
];

const FORMULA = `
<p><var>J</var>(π*) = E[<var>r</var>] − <var>β</var> · KL(π* ‖ ref) = <var>β</var> log <var>Z</var></p>
<p><output data-number="value"></output> = <output data-number="expected_reward"></output> −
<span class="kl-live" data-beta></span> · <output data-number="kl"></output> nats =
<span class="kl-live" data-beta></span> · <output data-number="log_z"></output></p>
<p><span class="kl-word kl-optimum">π*</span> = ref · e<sup><var>r</var>/<var>β</var></sup> / <var>Z</var> leaves
<output data-number="losers" data-digits="4"></output> to all but the best, and the
<span class="kl-word kl-k3">rational tilt</span> <var>β</var> · ref / (<output data-number="tilt_lambda"></output> − <var>r</var>)
leaves <output data-number="tilt_losers" data-digits="4"></output>.</p>`;

function render({ model, el }) {
  const beta = slider({
    label: html("β, the price of a nat in reward (logarithmic)"),
    ...LIMIT,
    step: 0.01,
    log: true,
    spoken: (value) => `β = ${short(value)}`,
    change: (value) => change(model, { beta: value }),
  });
  const scaled = checkbox({
    label: "logarithmic axis for probabilities",
    change: (on) => change(model, { log_scale: on }),
  });
  const left = drawAnswers(model);
  const right = drawFrontier(model);
  const formula = h("div", { class: "kl-formula" }, html(FORMULA));
  const data = table("Each answer, and E[reward], KL to ref and J of each policy", ["answer", "reward", "ref", "π*", "rational tilt"]);
  const caption = (markup) => h("figcaption", {}, html(markup));

  el.classList.add("kl-root");
  el.append(
    beta.node,
    h(
      "div",
      { class: "kl-panels" },
      h("figure", {}, left.node, caption("Drag the rewards. Bars: the reference, its optimum, the rational tilt."), scaled.node),
      h("figure", {}, right.node, caption("Drag π* along the frontier. The dotted line touches it there: its slope is β, and it starts at J.")),
    ),
    formula,
    experiments(model, TRY),
    data.node,
  );
  return follow(model, ["answers", "beta", "log_scale", "ref", "reward"], (state) => {
    const sizes = new Set([state.answers, state.ref, state.reward].map((list) => list.length));
    if (sizes.size > 1) return; // a notebook is setting one list after another
    const numbers = compute(state);
    beta.update(state.beta);
    scaled.update(state.log_scale);
    left.update(state, numbers);
    right.update(state, numbers);
    fill(formula, numbers);
    for (const node of formula.querySelectorAll("[data-beta]")) set(node, { text: short(state.beta) });
    const none = "";
    data.update([
      ...state.answers.map((name, i) => [name, state.reward[i], state.ref[i], numbers.star[i], numbers.tilt[i]]),
      ["E[reward]", none, numbers.ref_reward, numbers.expected_reward, numbers.tilt_reward],
      ["KL to ref, nats", none, 0, numbers.kl, numbers.tilt_kl],
      ["J", none, numbers.ref_reward, numbers.value, numbers.tilt_value],
    ]);
  });
}

// Rewards to drag, and under each the probabilities.
function drawAnswers(model) {
  const node = chart({
    width: WIDTH,
    height: HEIGHT,
    interactive: true,
    label: "The reward of each answer, and its probability under the reference, the optimum and the rational tilt",
  });
  const rewards = linear([0, 1], [STRIP.bottom, STRIP.top]);
  const rewardAxis = axis("y", { at: LEFT, title: "reward, to drag", grid: RIGHT - LEFT, count: 2 });
  const barAxis = axis("y", { at: LEFT, title: "probability", grid: RIGHT - LEFT, count: 4 });
  const columns = s("g");
  rewardAxis.update(rewards);
  node.append(rewardAxis.node, barAxis.node, columns);
  let parts = [];

  // The columns are built once for as many answers as there are; a redraw only moves them.
  function build(answers) {
    const width = (RIGHT - LEFT) / answers.length;
    parts = answers.map((name, i) => {
      const middle = LEFT + width * (i + 0.5);
      const stem = s("line", { x1: middle, x2: middle, y1: STRIP.bottom, class: "kl-stem" });
      const bars = KINDS.map((kind, k) =>
        s("rect", { x: middle + (k - 1.5) * width * 0.26, width: width * 0.22, class: `kl-bar kl-${kind}` }),
      );
      const grip = handle({
        label: `reward of ${name}`,
        min: 0,
        max: 1,
        step: 0.01,
        shape: s("circle", { r: 7, class: "kl-grip" }),
        at: ({ y }) => rewards.invert(y),
        change: (value) => change(model, { reward: model.get("reward").map((old, j) => (j === i ? value : old)) }),
      });
      const label = s("text", { x: middle, y: BARS.bottom + 17, "text-anchor": "middle", text: name, class: "kl-name" });
      return { middle, stem, bars, grip, label };
    });
    columns.replaceChildren(
      ...parts.flatMap(({ stem, bars, label }) => [stem, ...bars, label]),
      ...parts.map(({ grip }) => grip.node),
      legend(),
    );
  }

  let shown = "";
  const update = ({ answers, ref, reward, log_scale: log }, { star, tilt }) => {
    if (shown !== JSON.stringify(answers)) build(answers);
    shown = JSON.stringify(answers);
    const height = log ? logarithmic([FLOOR, 1], [BARS.bottom, BARS.top]) : linear([0, 1], [BARS.bottom, BARS.top]);
    barAxis.update(height);
    parts.forEach(({ middle, stem, bars, grip }, i) => {
      const y = rewards(reward[i]);
      set(stem, { y2: y });
      grip.update(middle, y, reward[i], format(reward[i], 2));
      [ref[i], star[i], tilt[i]].forEach((p, k) => {
        const top = log && p < FLOOR ? BARS.bottom : height(p);
        set(bars[k], { y: top, height: Math.max(BARS.bottom - top, 0) });
      });
    });
  };
  return { node, update };
}

// Names in the colours of their bars, under the picture.
function legend() {
  const entries = [["reference", "ref", 70], ["optimum", "π*", 138], ["k3", "rational tilt", 198]];
  return s(
    "g",
    { "aria-hidden": "true" },
    ...entries.flatMap(([kind, name, x]) => [
      s("rect", { x, y: HEIGHT - 18, width: 11, height: 11, class: `kl-bar kl-${kind}` }),
      s("text", { x: x + 16, y: HEIGHT - 8, class: `kl-word kl-${kind}`, text: name }),
    ]),
  );
}

// E[reward] against KL: the frontier, where π* is on it, and the tangent of slope β that starts at J.
function drawFrontier(model) {
  const bottom = 278;
  const node = chart({
    width: WIDTH,
    height: HEIGHT,
    label: "Expected reward against KL to the reference: the frontier, the optimum on it, its tangent, and the rational tilt below",
  });
  const up = linear([0, 1], [bottom, 26]);
  const xAxis = axis("x", { at: bottom, title: "KL(policy ‖ ref)  [nats per sequence]", count: 5 });
  const yAxis = axis("y", { at: LEFT, title: "E[reward]", grid: RIGHT - LEFT });
  yAxis.update(up);
  const curve = s("path", { class: "kl-line kl-optimum" });
  const tangent = s("path", { class: "kl-line kl-exact" });
  const spots = {
    ref: s("g", {}, marker("reference")),
    value: s("g", {}, s("path", { d: "M-5 0H5", class: "kl-line kl-exact kl-mark" })),
    tilt: s("g", {}, marker("k3")),
    star: s("g", {}, s("circle", { r: 20, class: "kl-reach" }), marker("optimum", 8)),
  };
  const word = (kind, text, anchor = "start") => s("text", { class: `kl-word kl-${kind}`, "text-anchor": anchor, text });
  const words = { value: word("exact", "J"), ref: word("reference", "ref"), tilt: word("k3", "tilt"), star: word("optimum", "π*", "end") };
  node.append(xAxis.node, yAxis.node, curve, tangent, ...Object.values(spots), ...Object.values(words));
  let drawn = null; // what the last drawing was made of, to turn a place back into a β

  draggable(spots.star, ({ x }) => {
    const nats = drawn.across.invert(x);
    const kls = drawn.frontier_kl; // falls along BETAS
    const i = kls.findIndex((kl) => kl <= nats);
    if (i < 0) return change(model, { beta: LIMIT.max });
    if (i === 0) return change(model, { beta: LIMIT.min });
    const share = (kls[i - 1] - nats) / (kls[i - 1] - kls[i] || 1);
    change(model, { beta: Number((BETAS[i - 1] * (BETAS[i] / BETAS[i - 1]) ** share).toPrecision(6)) });
  });

  const update = ({ beta }, numbers) => {
    const widest = Math.max(numbers.kl_bound, numbers.tilt_kl, 0.1);
    const across = linear([0, widest * 1.12], [LEFT, RIGHT]);
    if (drawn?.across.domain[1] !== across.domain[1]) xAxis.update(across);
    drawn = { across, frontier_kl: numbers.frontier_kl };
    const reach = Math.min(widest * 1.12, (1 - numbers.value) / beta);
    set(curve, { d: path(numbers.frontier_kl.map((kl, i) => [across(kl), up(numbers.frontier_reward[i])])) });
    set(tangent, { d: path([[LEFT, up(numbers.value)], [across(reach), up(numbers.value + beta * reach)]]) });
    const at = {
      ref: [LEFT, up(numbers.ref_reward)],
      value: [LEFT, up(numbers.value)],
      tilt: [across(numbers.tilt_kl), up(numbers.tilt_reward)],
      star: [across(numbers.kl), up(numbers.expected_reward)],
    };
    for (const [name, [x, y]] of Object.entries(at)) place(spots[name], x, y);
    place(words.star, at.star[0] - 9, at.star[1] - 9);
    place(words.tilt, at.tilt[0] + 10, at.tilt[1] + 14);
    place(words.ref, LEFT + 10, at.ref[1] + 15);
    place(words.value, LEFT + 4, at.value[1] - 9);
    set(words.value, { opacity: at.star[0] - LEFT > 40 ? 1 : 0 });
  };
  return { node, update };
}

export default { render };
