import {
  axis, change, chart, checkbox, clamp, experiments, fill, follow, format, h, handle, html, linear, marker, path,
  place, s, set, short, slider, table, unique,
} from "./kit.js";

// ---- arithmetic: the same numbers as over_optimization.py -----------------------------------------------

const STEEPEST = 5;
const MOST_DRAWS = 1e8;
const ROOTS = Array.from({ length: 161 }, (_, i) => i / 160);
const SHARES = Array.from({ length: 81 }, (_, i) => i / 40);

const golden = (form, alpha, beta) => (d) => {
  if (form === "best-of-n") return alpha * d - beta * (d * d);
  return alpha * d - beta * (d === 0 ? 0 : d * Math.log(d));
};

const bound = (n) => Math.log(n) - (n - 1) / n;

// The largest n whose KL of best-of-n is within the budget.
function allowed(budget) {
  let n = Math.floor(Math.exp(Math.min(budget, Math.log(MOST_DRAWS)) + 1));
  while (bound(n) > budget + 1e-9) n -= 1;
  return n <= MOST_DRAWS ? n : Infinity;
}

const summit = (form, alpha, beta) => {
  const d = form === "best-of-n" ? alpha / (2 * beta) : Math.exp(alpha / beta - 1);
  return { d, kl: d * d, gold: form === "best-of-n" ? (alpha * d) / 2 : beta * d };
};

export function compute({ form, alpha, beta, slope, budget }) {
  const gold = golden(form, alpha, beta);
  const peak = summit(form, alpha, beta);
  const stop = Math.sqrt(budget);
  const landmarks = [peak.kl / 4, peak.kl / 2, peak.kl, peak.d, budget].map(Math.sqrt).map((d) => {
    const gain = gold(d);
    return [d, d * d, gain, slope * d, slope * d - gain, (100 * gain) / peak.gold];
  });
  const [, , stop_gold, stop_proxy, gap, kept] = landmarks[4];
  const along = ROOTS.map((root) => 8 * peak.d * root * root);
  return {
    peak_distance: peak.d,
    peak_kl: peak.kl,
    peak_gold: peak.gold,
    zero_kl: peak.kl * (form === "best-of-n" ? 4 : Math.E ** 2),
    stop_distance: stop,
    stop_gold,
    stop_proxy,
    gap,
    kept,
    kl_share: budget / peak.kl,
    distance_share: stop / peak.d,
    draws: allowed(budget),
    peak_draws: allowed(peak.kl),
    slip_kl: peak.d,
    slip_kept: landmarks[3][5],
    landmarks,
    curve_distance: along,
    curve_gold: along.map(gold),
    curve_proxy: along.map((d) => slope * d),
    curve_slip: along.map((d) => gold(d * d)),
    share_distance: SHARES,
    kept_best_of_n: SHARES.map((x) => 100 * golden("best-of-n", 2, 1)(x)),
    kept_rl: SHARES.map((x) => 100 * golden("rl", 1, 1)(x)),
  };
}

// ---- words ----------------------------------------------------------------------------------------------

const LIMITS = { alpha: [0.1, 3], beta: [0.02, 1], slope: [0.05, 3], budget: [0, 25000] };
const ROLE = { "best-of-n": "policy", rl: "optimum" };
const NAME = { "best-of-n": "best-of-n", rl: "RL" };
const COUNTS = [...new Set(Array.from({ length: 97 }, (_, k) => Math.round(2 ** (k / 4))))]; // 1 to 2²⁴ draws
const START = { form: "best-of-n", alpha: 0.9, beta: 0.3, slope: 0.9, budget: 1.125, axis: "distance", slip: false };

const TRY = [
  {
    title: "Half of the nats is most of the way.",
    text:
      "At half of the KL of its peak best-of-n has 91.42 % of the gold, and RL 95.22 %, whatever α and β: the curves on " +
      "the right never move. “Half of the peak” read as half of <i>d</i> is a quarter of the KL, and keeps 75 % and 84.66 %.",
    state: START,
  },
  {
    title: "A budget is as good as the peak that it was taken from.",
    text:
      "RL, stopped at half of its 403 nats. Now raise β from 0.25 to 0.5 and leave the budget alone: the peak falls to " +
      "7.39 nats, the budget is 27 times that, and the gold ends 3.4 peaks <em>below</em> the start. For best-of-n twice β " +
      "is a quarter of the nats: the budget of 2, half of the peak's 4, is then twice the peak's 1 and still keeps 82.84 %.",
    state: { ...START, form: "rl", alpha: 1, beta: 0.25, slope: 0.5, budget: 201.7 },
  },
  {
    title: "Nothing in the proxy says when to stop.",
    text:
      "Six draws bring 99.96 % of the peak. Raise <i>n</i>: at 152 draws the proxy has doubled, a straight line all the " +
      "way, and the gold is below the start. The peak lies at one nat, its end at four.",
    state: { ...START, alpha: 0.8, beta: 0.4, slope: 0.8, budget: Number(bound(6).toPrecision(12)) },
  },
];

const out = (name, digits = 3) => `<output data-number="${name}" data-digits="${digits}"></output>`;
const live = (name) => `<span class="kl-live" data-live="${name}"></span>`;
const only = (form, markup) => `<span data-form="${form}">${markup}</span>`;
const FORMULA = `
<p><span class="kl-word" data-word>Gold</span>
${only("best-of-n", `<var>d</var> (α − β <var>d</var>) = ${live("d")} · (${live("alpha")} − ${live("beta")} · ${live("d")})`)}
${only("rl", `<var>d</var> (α − β log <var>d</var>) = ${live("d")} · (${live("alpha")} − ${live("beta")} · log ${live("d")})`)}
= ${out("stop_gold")} at the stop; <b>proxy</b> ${live("slope")} · <var>d</var> = ${out("stop_proxy")}. Gap ${out("gap")}.</p>
<p><b>Peak</b> at <var>d</var> =
${only("best-of-n", "α / 2β")}${only("rl", "e<sup>α/β − 1</sup>")} = ${out("peak_distance")}, so at
KL = <var>d</var>² = ${out("peak_kl")} nats, with gold ${out("peak_gold")}.
The gold is back at the start at ${only("best-of-n", "4")}${only("rl", "e²")} times that, ${out("zero_kl", 2)} nats.</p>
<p><b>Stop</b> at ${out("kl_share")} of that KL, so at <var>x</var> = √${out("kl_share")} = ${out("distance_share")} of that <var>d</var>. This
keeps <var>x</var> ${only("best-of-n", "(2 − <var>x</var>)")}${only("rl", "(1 − log <var>x</var>)")} =
<b>${out("kept", 2)} %</b> of the peak.</p>
<p data-form="best-of-n"><b>${live("draws")}</b>: log <var>n</var> − (<var>n</var> − 1)/<var>n</var> = ${live("cost")} nats,
if no two can tie. The peak is at ${live("peak_draws")}.</p>
<p><b>The slip:</b> with <var>d</var> read as the KL the peak would be at ${out("slip_kl")} nats. Who stops there keeps
${out("slip_kept", 2)} %.</p>`;

const counted = (n) => (n === Infinity ? "over 10⁸ draws" : `${n < 1e5 ? n : format(n, 0)} ${n === 1 ? "draw" : "draws"}`);

// ---- controls -------------------------------------------------------------------------------------------

// Coefficients within their bounds, and for RL with a peak that can be seen; `keep` is the one to keep.
function coefficients(form, alpha, beta, keep = "alpha") {
  let [a, b] = [clamp(alpha, ...LIMITS.alpha), clamp(beta, ...LIMITS.beta)].map((value) => Number(value.toFixed(4)));
  if (form === "rl" && a > STEEPEST * b) {
    if (keep === "alpha") b = a / STEEPEST;
    else a = STEEPEST * b;
  }
  return { alpha: a, beta: b };
}

// The coefficients of a curve with its peak there. Where a bound is in the way the height gives in, not d.
function throughPeak(form, d, gold) {
  const ratio = form === "rl" ? 1 + Math.log(d) : 2 * d; // of alpha to beta
  const bend = clamp(form === "rl" ? gold / d : gold / (d * d), ...LIMITS.beta);
  const start = clamp(bend * ratio, ...LIMITS.alpha);
  return coefficients(form, start, ratio > 0 ? start / ratio : bend, "beta");
}

const peakOf = (model) => summit(...["form", "alpha", "beta"].map((name) => model.get(name)));
const spend = (model, share) => change(model, { budget: clamp(Number((share * peakOf(model).kl).toPrecision(12)), ...LIMITS.budget) });

// The other form, stopped at the same share of its peak and with the same proxy there in peaks.
function setForm(model, form) {
  const old = peakOf(model);
  const next = coefficients(form, model.get("alpha"), model.get("beta"));
  const peak = summit(form, next.alpha, next.beta);
  const slope = (model.get("slope") * old.d * peak.gold) / (old.gold * peak.d);
  change(model, {
    form,
    ...next,
    slope: clamp(Number(slope.toPrecision(6)), ...LIMITS.slope),
    budget: clamp(Number(((model.get("budget") / old.kl) * peak.kl).toPrecision(12)), ...LIMITS.budget),
  });
}

function radios(legend, options, pick) {
  const name = unique("choice");
  const inputs = options.map(([value]) =>
    h("input", { type: "radio", name, value, "data-lm-suppress-shortcuts": "true", change: () => pick(value) }),
  );
  const labels = options.map(([, text], i) => h("label", { class: "kl-check" }, inputs[i], html(text)));
  const node = h("fieldset", { class: "kl-oo-choice" }, h("legend", {}, legend), ...labels);
  return { node, update: (value) => inputs.forEach((input) => (input.checked = input.value === value)) };
}

function render({ model, el }) {
  const form = radios("optimised by", [["best-of-n", "best-of-n"], ["rl", "RL"]], (value) => setForm(model, value));
  const along = radios("along the axis", [["distance", "<span><var>d</var> = √KL</span>"], ["kl", "KL"]], (value) => change(model, { axis: value }));
  const slip = checkbox({ label: "the slip: d read as the KL", change: (on) => change(model, { slip: on }) });
  const coefficient = (name, label, step) =>
    slider({
      label, min: LIMITS[name][0], max: LIMITS[name][1], step, spoken: (value) => `${label[0]} = ${short(value)}`,
      change(value) {
        const given = { alpha: model.get("alpha"), beta: model.get("beta"), [name]: value };
        const { [name]: reached } = coefficients(model.get("form"), given.alpha, given.beta, name === "alpha" ? "beta" : "alpha");
        change(model, { [name]: reached });
      },
    });
  const alpha = coefficient("alpha", "α of the gold: how fast it starts", 0.01);
  const beta = coefficient("beta", "β of the gold: how fast it bends", 0.01);
  const slope = slider({
    label: "slope of the proxy [reward per √nat]", min: LIMITS.slope[0], max: LIMITS.slope[1], step: 0.05,
    spoken: (value) => format(value, 2), change: (value) => change(model, { slope: value }),
  });
  let most = 1;
  const draws = slider({
    label: "draws n that the budget allows", min: 0, max: COUNTS.length - 1, step: 1,
    spoken: () => counted(most), // the slider stands at the last mark that is not above it
    change: (k) => change(model, { budget: Number(bound(COUNTS[k]).toPrecision(12)) }),
  });
  const left = drawCurves(model);
  const right = drawShares(model);
  const formula = h("div", { class: "kl-formula" }, html(FORMULA));
  const data = table("Gains in reward units at what the picture marks", ["where", "d, √nats", "KL, nats", "gold", "proxy", "proxy − gold", "kept, %"]);
  const figure = ({ node }, markup, ...sliders) => h("figure", {}, node, h("figcaption", {}, html(markup)), ...sliders.map((one) => one.node));

  el.classList.add("kl-root");
  el.append(
    h("div", { class: "kl-oo-choices" }, form.node, along.node, h("fieldset", { class: "kl-oo-choice" }, h("legend", {}, "shown"), slip.node)),
    h(
      "div",
      { class: "kl-panels" },
      figure(left, "Drag the peak, the proxy line and the stop at the KL budget. Shaded: worse than the start. The axes refit when you let go.", alpha, beta),
      figure(right, "What a stop keeps of the gold at the peak. Drag the point. The form decides, not α and β.", slope, draws),
    ),
    formula,
    experiments(model, TRY),
    data.node,
  );
  return follow(model, Object.keys(START), (state) => {
    const numbers = compute(state);
    form.update(state.form);
    along.update(state.axis);
    slip.update(state.slip);
    alpha.update(state.alpha);
    beta.update(state.beta);
    slope.update(state.slope);
    most = numbers.draws;
    const above = COUNTS.findIndex((n) => n > numbers.draws);
    draws.update(above < 0 ? COUNTS.length - 1 : above - 1);
    set(draws.node, { hidden: state.form === "rl" });
    left.update(state, numbers);
    right.update(state, numbers);
    fill(formula, numbers);
    write(formula, state, numbers);
    const at = (name, row) => [name, ...numbers.landmarks[row]];
    const end = Math.sqrt(numbers.zero_kl);
    data.update([
      at("stop", 4), at("peak", 2), at("half of its KL", 1), at("half of its d", 0), at("d read as the KL", 3),
      ["gold back at the start", end, numbers.zero_kl, 0, state.slope * end, state.slope * end, 0],
    ]);
  });
}

// What changes in the formulas beside the numbers.
function write(formula, state, { stop_distance, draws, peak_draws }) {
  const words = {
    d: format(stop_distance, 3),
    alpha: short(state.alpha),
    beta: short(state.beta),
    slope: short(state.slope),
    draws: counted(draws),
    peak_draws: counted(peak_draws),
    cost: draws === Infinity ? "over 17.4" : format(bound(draws), 3),
  };
  for (const node of formula.querySelectorAll("[data-live]")) set(node, { text: words[node.dataset.live] });
  for (const node of formula.querySelectorAll("[data-form]")) set(node, { hidden: node.dataset.form !== state.form });
  set(formula.querySelector("[data-word]"), { class: `kl-word kl-${ROLE[state.form]}` });
}

// ---- drawing --------------------------------------------------------------------------------------------

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 300, 44, 330, 50, 262];
const diamond = () => s("path", { class: "kl-oo-grip", d: "M0 -8L7 0L0 8L-7 0Z" });
const note = (attributes = {}) => s("text", { class: "kl-oo-note", ...attributes });
const heading = (text) => s("text", { class: "kl-title", x: 8, y: 14, text });
const axisTitle = () => s("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 33, "text-anchor": "middle", class: "kl-oo-note" });
const word = (kind, text) => s("text", { class: `kl-word kl-oo-halo ${kind}`, text });
const swap = (node, form) => node.replaceChildren(marker(ROLE[form], ROLE[form] === "optimum" ? 8 : 7));

// How far the axes go. They stay while everything is in sight, and while a hand is on the picture.
function fit(old, { form, budget }, { peak_distance: d, peak_gold: gold, stop_distance, stop_gold }) {
  const low = clamp(1.08 * stop_gold, -4 * gold, -gold);
  const sees = (view) =>
    view.form === form && d > 0.12 * view.far && d < 0.8 * view.far && gold > 0.15 * view.high && gold < 0.8 * view.high &&
    Math.min(stop_distance, 7 * d) <= view.far && low >= 1.1 * view.low;
  if (old && sees(old)) return old;
  const far = Math.min(Math.max((form === "rl" ? 3.2 : 2.4) * d, 1.08 * stop_distance), 7.5 * d);
  return { form, far, high: 2.5 * gold, low };
}

// Proxy and gold along d or KL, the peak, the stop.
function drawCurves(model) {
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "Gain in proxy and in gold reward against the distance from the initial policy, with the peak of the gold and the stop at the budget" });
  const id = unique("curves");
  const inside = s("g", { "clip-path": `url(#${id})` });
  const [xAxis, yAxis] = ["distance", "gain"].map((name, i) =>
    axis(i ? "y" : "x", { at: i ? LEFT : BOTTOM, title: "", count: 5 }),
  );
  const title = axisTitle();
  const below = s("rect", { class: "kl-oo-below", x: LEFT, width: RIGHT - LEFT });
  const [zero, drop, line, gap] = ["zero", "drop", "stop", "gap"].map((name) => s("path", { class: `kl-oo-${name}` }));
  const [proxy, gold, slip] = ["kl-oo-proxy", "", "kl-oo-slip"].map((kind) => s("path", { class: `kl-line ${kind}` }));
  const counts = s("g", { class: "kl-oo-mark", "aria-hidden": "true" });
  const words = { proxy: word("kl-oo-proxy", "proxy"), gold: word("", "gold"), slip: word("kl-k3", "d = KL?"), below: note({ text: "below the start" }) };
  const says = { peak: note({ class: "kl-oo-note kl-oo-halo" }), stop: s("text", { class: "kl-oo-says" }), gap: s("text", { class: "kl-oo-says" }) };
  const slipSpot = s("g", {}, marker("k3", 5));
  let [view, across, up, held, hand, latest] = [null, null, null, false, null, null];
  const squared = () => model.get("axis") === "kl";
  const distanceAt = (x) => (squared() ? Math.sqrt(Math.max(across.invert(x), 0)) : Math.max(across.invert(x), 0));

  const summitShape = s("g");
  const summitGrip = handle({
    label: "peak of the gold, along d", min: -4, max: 4.5, step: 0.01, page: 0.1, vertical: false, shape: summitShape,
    at({ x, y }) {
      const inView = [clamp(x, LEFT + 6, RIGHT - 6), clamp(y, TOP, up(0) - 3)];
      hand = up.invert(inView[1]);
      return Math.log(distanceAt(inView[0]));
    },
    change(value) {
      const [d, form] = [Math.exp(value), model.get("form")];
      const height = hand ?? peakOf(model).gold;
      hand = null;
      change(model, throughPeak(form, d, height));
    },
  });
  const proxyGrip = handle({
    label: "proxy line", ...{ min: LIMITS.slope[0], max: LIMITS.slope[1] }, step: 0.05, page: 0.5,
    shape: s("circle", { r: 6, class: "kl-oo-knob" }),
    at: ({ x, y }) => up.invert(y) / Math.max(distanceAt(x), 1e-9),
    change: (value) => change(model, { slope: value }),
  });
  const stopGrip = handle({
    label: "KL budget, in KLs of the peak", min: 0, max: 8, step: 0.01, page: 0.1, vertical: false, shape: diamond(),
    at: ({ x }) => distanceAt(Math.min(x, RIGHT)) ** 2 / peakOf(model).kl,
    change: (value) => spend(model, value),
  });
  for (const grip of [summitGrip, proxyGrip, stopGrip]) {
    set(grip.node, {
      pointerdown: () => (held = true),
      lostpointercapture() {
        held = false;
        update(...latest);
      },
    });
  }
  inside.append(below, zero, drop, proxy, slip, gold, line, gap);
  node.append(
    s("clipPath", { id }, s("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP })),
    inside, xAxis.node, yAxis.node, heading("gain over the start [reward units]"), title, counts, slipSpot, ...Object.values(words), ...Object.values(says),
    proxyGrip.node, summitGrip.node, stopGrip.node,
  );

  // The axes: redrawn only where they change.
  function frame(state, numbers) {
    const next = held && view?.form === state.form ? view : fit(view, state, numbers);
    const kl = state.axis === "kl";
    if (next === view && across.squared === kl) return;
    view = next;
    across = Object.assign(linear([0, kl ? view.far ** 2 : view.far], [LEFT, RIGHT]), { squared: kl });
    up = linear([view.low, view.high], [BOTTOM, TOP]);
    xAxis.update(across);
    yAxis.update(up);
    set(title, { text: kl ? "KL(policy ‖ start)  [nats per sequence]" : "d = √KL(policy ‖ start)  [√nats per sequence]" });
    set(below, { y: up(0), height: BOTTOM - up(0) });
    set(zero, { d: `M${LEFT} ${up(0)}H${RIGHT}` });
        counts.replaceChildren(...(state.form === "rl" ? [] : ruler(across, kl)));
  }

  function update(state, numbers) {
    latest = [state, numbers];
    frame(state, numbers);
    const kl = state.axis === "kl";
    const at = (d) => across(kl ? d * d : d);
    const inY = (value) => clamp(up(value), TOP - 400, BOTTOM + 400);
    const trace = (values) => path(numbers.curve_distance.map((d, i) => [Math.min(at(d), RIGHT + 400), inY(values[i])]));
    const { peak_distance, peak_gold, stop_distance, stop_gold, stop_proxy, slip_kl } = numbers;
    const role = `kl-${ROLE[state.form]}`;
    set(gold, { d: trace(numbers.curve_gold), class: `kl-line ${role}` });
    set(proxy, { d: trace(numbers.curve_proxy) });
    set(slip, { d: trace(numbers.curve_slip), display: state.slip ? null : "none" });
    const [px, py] = [at(peak_distance), up(peak_gold)];
    if (summitShape.dataset.form !== state.form) swap(summitShape, (summitShape.dataset.form = state.form));
    summitGrip.update(px, py, clamp(Math.log(peak_distance), -4, 4.5), `d = ${format(peak_distance, 2)}, ${format(numbers.peak_kl, 2)} nats, gold ${format(peak_gold, 2)}`);
    set(drop, { d: `M${px.toFixed(2)} ${py.toFixed(2)}V${BOTTOM}` });
    const low = up(0) - py < 46; // too little room under the curve
    set(says.peak, { x: Math.min(px + (low ? 12 : 6), RIGHT - 84), y: low ? py - 6 : (py + up(0)) / 2 + 4, text: `peak, ${format(numbers.peak_kl, 2)} nats` });

    const out = at(stop_distance) > RIGHT + 0.5;
    const sx = Math.min(at(stop_distance), RIGHT);
    set(line, { d: `M${sx.toFixed(2)} ${TOP}V${BOTTOM}` });
    const ends = [stop_gold, stop_proxy].map((value) => clamp(up(value), TOP, BOTTOM));
    set(words.below, { x: sx < LEFT + 92 ? sx + 8 : LEFT + 5, y: up(0) + 14 });
    set(gap, { d: out ? "" : `M${sx.toFixed(2)} ${ends[0].toFixed(2)}V${ends[1].toFixed(2)}` });
    stopGrip.update(sx, BOTTOM, clamp(numbers.kl_share, 0, 8), `${format(state.budget, 2)} nats, keeps ${format(numbers.kept, 2)} %`);
    const side = sx > LEFT + 84 && (sx < px || sx > RIGHT - 84) ? -1 : 1; // words go where there is room
    const anchor = side > 0 ? "start" : "end";
    set(says.stop, { x: sx + 7 * side, y: BOTTOM - 8, "text-anchor": anchor, text: `${out ? "→ " : ""}${format(numbers.kept, 1)} % kept` });
    const room = Math.abs(ends[0] - ends[1]) > 16 && !out;
    set(says.gap, { x: sx + 7 * side, y: (ends[0] + ends[1]) / 2 + 4, "text-anchor": anchor, text: `gap ${format(numbers.gap, 2)}`, display: room ? null : "none" });

    const hold = Math.min(0.86 * view.far, (0.9 * view.high) / state.slope);
    proxyGrip.update(at(hold), up(state.slope * hold), state.slope, `slope ${format(state.slope, 2)}`);
    const left = at(hold) > LEFT + 60;
    set(words.proxy, { x: at(hold) + (left ? -12 : 12), y: up(state.slope * hold) + 4, "text-anchor": left ? "end" : "start" });
    const far = Math.min(view.far * 0.97, Math.sqrt(numbers.zero_kl) * 0.86);
    const height = golden(state.form, state.alpha, state.beta)(far);
    set(words.gold, { x: at(far) + 7, y: clamp(up(height) - 5, TOP + 12, BOTTOM - 8), "text-anchor": at(far) > RIGHT - 34 ? "end" : "start", class: `kl-word kl-oo-halo ${role}` });
    const wrong = [at(Math.sqrt(slip_kl)), up(peak_gold)];
    const seen = state.slip && wrong[0] <= RIGHT ? null : "none";
    set(slipSpot, { display: seen });
    const down = at(Math.sqrt(slip_kl * (state.form === "rl" ? Math.E : 2))); // where the false curve is at 0 again
    set(words.slip, { display: down > RIGHT ? "none" : seen, x: down + (down > RIGHT - 50 ? -7 : 5), y: up(0) - 6, "text-anchor": down > RIGHT - 50 ? "end" : "start" });
    place(slipSpot, ...wrong.map((value) => clamp(value, -999, 999)));
  }
  return { node, update };
}

// What the distance costs in draws, along the top.
function ruler(across, kl) {
  const marks = [];
  let last = -Infinity;
  for (const n of [1, 2, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 1048576, 16777216]) {
    const x = across(kl ? bound(n) : Math.sqrt(bound(n)));
    const text = n < 1e5 ? String(n) : `2${n === 1048576 ? "²⁰" : "²⁴"}`;
    if (x > RIGHT || x - last < 10 + 6.5 * text.length) continue;
    last = x;
    marks.push(s("line", { x1: x, x2: x, y1: TOP - 4, y2: TOP }), s("text", { x, y: TOP - 8, "text-anchor": "middle", text }));
  }
  return [...marks, s("text", { x: LEFT - 12, y: TOP - 8, "text-anchor": "end", text: "n =" }), s("line", { x1: LEFT, x2: RIGHT, y1: TOP, y2: TOP })];
}

// Gold at the stop in percent of the peak, against the stop in peaks: two curves that never move.
function drawShares(model) {
  const node = chart({ width: WIDTH, height: HEIGHT, interactive: true, label: "Percent of the gold at the peak that a stop keeps, against where it stops, for best-of-n and for RL" });
  const up = linear([-25, 105], [BOTTOM, TOP]);
  const yAxis = axis("y", { at: LEFT, title: "", grid: RIGHT - LEFT, count: 5 });
  const xAxis = axis("x", { at: BOTTOM, title: "", count: 4 });
  const title = axisTitle();
  const below = s("rect", { class: "kl-oo-below", x: LEFT, width: RIGHT - LEFT, y: up(0), height: BOTTOM - up(0) });
  const guides = s("path", { class: "kl-oo-drop" });
  const curves = { "best-of-n": s("path"), rl: s("path") };
  const names = { "best-of-n": word("kl-policy", "best-of-n"), rl: word("kl-optimum", "RL") };
  const marks = ["½ d", "½ KL", "peak"].map((text) => note({ text, y: TOP - 7 }));
  const [line, says, shape] = [s("path", { class: "kl-oo-stop" }), s("text", { class: "kl-oo-says" }), s("g")];
  let across = null;
  const ratio = (x) => (across.squared ? across.invert(x) : across.invert(x) ** 2);
  const grip = handle({
    label: "stop, in KLs of the peak", min: 0, max: 4, step: 0.01, page: 0.1, vertical: false, shape,
    at: ({ x }) => (x < LEFT ? 0 : ratio(x)), change: (value) => spend(model, value),
  });
  yAxis.update(up);
  node.append(below, yAxis.node, xAxis.node, heading("gold at the stop [% of the peak]"), title, guides, ...marks, ...Object.values(curves), ...Object.values(names), line, says, grip.node);

  const update = (state, numbers) => {
    const kl = state.axis === "kl";
    const at = (share) => across(kl ? share * share : share);
    if (across?.squared !== kl) {
      across = Object.assign(linear([0, kl ? 4 : 2], [LEFT, RIGHT]), { squared: kl });
      xAxis.update(across);
      set(title, { text: kl ? "KL at the stop / KL at the peak" : "d at the stop / d at the peak" });
      const places = [0.5, Math.SQRT1_2, 1].map(at);
      set(guides, { d: places.map((x) => `M${x} ${TOP}V${BOTTOM}`).join("") });
      marks.forEach((text, i) => set(text, { x: places[i], "text-anchor": kl ? ["end", "start", "start"][i] : "middle" }));
      for (const [form, role] of Object.entries(ROLE)) {
        const values = form === "rl" ? numbers.kept_rl : numbers.kept_best_of_n;
        set(curves[form], { d: path(numbers.share_distance.map((share, i) => [at(share), up(values[i])])) });
        const rl = form === "rl";
        set(names[form], { x: at(1.6) + (rl ? 0 : -8), y: up(rl ? 88 : 58), "text-anchor": rl ? "start" : "end", class: `kl-word kl-oo-halo kl-${role}` });
      }
    }
    for (const form of Object.keys(ROLE)) set(curves[form], { class: `kl-line kl-${ROLE[form]}${form === state.form ? "" : " kl-oo-other"}` });
    if (shape.dataset.form !== state.form) swap(shape, (shape.dataset.form = state.form));
    const [x, y] = [Math.min(at(numbers.distance_share), RIGHT), clamp(up(numbers.kept), TOP, BOTTOM)];
    grip.update(x, y, clamp(numbers.kl_share, 0, 4), `${format(numbers.kl_share, 2)} of the KL of the peak, keeps ${format(numbers.kept, 2)} %`);
    set(line, { d: `M${x.toFixed(2)} ${y.toFixed(2)}V${BOTTOM}` });
    const end = x > RIGHT - 80;
    set(says, { x: x + (end ? -13 : 13), y: clamp(y + (numbers.distance_share < 1 ? 16 : -8), TOP + 12, BOTTOM - 8), "text-anchor": end ? "end" : "start", text: `${format(numbers.kept, 2)} %` });
  };
  return { node, update };
}

export default { render };
