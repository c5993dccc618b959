// A mock interview: five questions with a clock each, marked by the reader with the rubric.
(() => {
  const Core = PracticeCore;
  const { button, data, enter, h, keys, name, speaker, swap, typeset } = PracticeView;
  const place = document.getElementById("practice-mock");
  const USUAL = 4; // minutes for a question
  const LONGEST = 30;

  const box = h("div", { class: "practice-card", tabindex: "-1", role: "group", "aria-label": "Mock interview" });
  const notice = speaker();
  let mock = null; // {rounds, at, minutes, deadline, warned, revealed, timer}

  // ---- before ---------------------------------------------------------------------------------------

  function intro(minutes = USUAL) {
    const limits = { min: 1, max: LONGEST, step: 1, required: true };
    const input = h("input", { type: "number", id: "mock-minutes", value: minutes, ...limits });
    const submit = (event) => {
      event.preventDefault(); // the page stays
      start(input.valueAsNumber);
    };
    const form = h("form", { class: "practice-buttons", submit },
      h("label", {}, "Minutes for each question ", input),
      h("button", { class: "practice-main", text: "Draw five questions" }),
    );
    const plan = "Two questions of level 1, two of level 2, one of level 3. Answer aloud, as you would there.";
    swap(box, h("p", { text: plan }), form);
  }

  function start(minutes) {
    const rounds = Core.draw(data.questions, Date.now()).map((question) => ({
      question, ticked: question.rubric.map(() => false), late: false,
    }));
    mock = { rounds, at: 0, minutes };
    ask();
  }

  // ---- a question -----------------------------------------------------------------------------------

  const round = () => mock.rounds[mock.at];

  function buttons(main) {
    const leave = h("button", { type: "button", click: stop, text: "Stop" });
    return h("div", { class: "practice-buttons" }, leave, main);
  }

  function ask() {
    const { question } = round();
    Object.assign(mock, { deadline: Date.now() + mock.minutes * Core.MINUTE, warned: false, revealed: false });
    const front = h("div", { class: "practice-front", html: question.front });
    const number = `Question ${mock.at + 1} of ${mock.rounds.length}`;
    const about = [number, `Level ${question.level}`, name(question.topic)].join(" · ");
    const clock = h("span", { class: "mock-clock", role: "timer", "aria-label": "Time left" });
    const show = button("practice-main", "Show the answer", "Space", () => reveal(false));
    swap(box, h("p", { class: "practice-about" }, h("span", { text: about }), clock), front, buttons(show));
    typeset(front);
    notice.say("");
    clearInterval(mock.timer);
    mock.timer = setInterval(tick, 250);
    tick();
    enter(box);
  }

  function tick() {
    const left = mock.deadline - Date.now();
    box.querySelector(".mock-clock").textContent = Core.clock(left);
    if (left <= 0) reveal(true);
    else if (left <= Core.MINUTE && mock.minutes > 1 && !mock.warned) {
      mock.warned = true;
      notice.say("One minute left.");
    }
  }

  function reveal(late) {
    if (!mock || mock.revealed) return false;
    clearInterval(mock.timer);
    mock.revealed = true;
    round().late = late;
    notice.say(late ? "Time is up. Here is the answer." : "");
    const { question } = round();
    const back = h("div", { class: "practice-back", tabindex: "-1", html: question.back });
    const legend = h("legend", { text: "Tick what you said." });
    const points = h("fieldset", { class: "mock-points" }, legend, ...question.rubric.map(point));
    const last = mock.at === mock.rounds.length - 1;
    const go = button("practice-main", last ? "See the result" : "Next question", "N", forward);
    box.querySelector(".practice-buttons").replaceWith(back, points, buttons(go));
    typeset(back, points);
    back.focus({ preventScroll: true });
  }

  function point(text, i) {
    const input = h("input", { type: "checkbox", change: () => (round().ticked[i] = input.checked) });
    return h("label", {}, input, h("kbd", { text: String(i + 1) }), h("span", { html: text }));
  }

  function toggle(i) {
    const input = box.querySelectorAll(".mock-points input")[i];
    if (!input) return false;
    input.click();
  }

  function forward() {
    if (!mock?.revealed) return false;
    mock.at += 1;
    if (mock.at < mock.rounds.length) ask();
    else result();
  }

  function stop() {
    const { minutes } = mock;
    end();
    notice.say("Stopped; nothing was counted.");
    reset(minutes);
  }

  function reset(minutes) {
    intro(minutes);
    enter(box);
  }

  function end() {
    clearInterval(mock.timer);
    mock = null;
  }

  // ---- after ----------------------------------------------------------------------------------------

  function result() {
    const { rounds, minutes } = mock;
    const total = Core.score(rounds);
    end();
    const score = `${total.points} of ${total.of} points`;
    const table = results(rounds);
    const all = h("p", { text: "Every point made: nothing to read again." });
    const more = h("button", { type: "button", class: "practice-main", click: () => start(minutes), text: "Draw again" });
    const change = h("button", { type: "button", click: () => reset(minutes), text: "Change the time" });
    swap(box,
      h("p", { class: "mock-score", text: score }), table,
      ...(total.reread.length ? again(total.reread) : [all]),
      h("div", { class: "practice-buttons" }, change, more),
    );
    typeset(table);
    notice.say(`The interview is over: ${score}.`);
    enter(box);
  }

  function again(sections) {
    const links = sections.map(([href, title]) => h("li", {}, h("a", { href, text: title })));
    return [h("p", { text: "Read again, for the points you missed:" }), h("ul", { class: "mock-reread" }, ...links)];
  }

  function results(rounds) {
    const heads = ["Question", "Level", "Topic", "Points"].map((text) => h("th", { scope: "col", text }));
    return h("table", { class: "mock-result" },
      h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rounds.map(row)),
    );
  }

  function row(round) {
    const { question, ticked, late } = round;
    const link = h("a", { href: question.href, text: question.id });
    return h("tr", {},
      h("td", {}, link, " ", h("span", { html: question.front.replace(/^<p>|<\/p>$/g, "") })),
      h("td", { text: String(question.level) }),
      h("td", { text: name(question.topic) }),
      h("td", { text: `${Core.points(round)} of ${ticked.length}${late ? ", time ran out" : ""}` }),
    );
  }

  // ---- start ----------------------------------------------------------------------------------------

  const digits = Object.fromEntries([0, 1, 2, 3, 4, 5].map((i) => [i + 1, () => toggle(i)]));
  const legend = h("p", {
    class: "practice-legend",
    html: "Keys: <kbd>Space</kbd> or <kbd>Enter</kbd> shows the answer, <kbd>1</kbd> to <kbd>6</kbd> tick a " +
      "point, <kbd>N</kbd> goes on.",
  });
  place.replaceChildren(box, notice.node, legend);
  keys(place, { " ": () => reveal(false), enter: () => reveal(false), n: forward, ...digits });
  addEventListener("beforeunload", (event) => {
    if (mock) event.preventDefault(); // the browser asks whether to leave an interview under way
  });
  intro();
})();
