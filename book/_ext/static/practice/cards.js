// The cards of the practice page: shown one by one, graded by the reader, brought back by FSRS.
(() => {
  const Core = PracticeCore;
  const { button, data, enter, h, keys, name, reread, speaker, swap, typeset } = PracticeView;
  const place = document.getElementById("practice-cards");
  const KEY = "kltutor-practice";
  const KINDS = {
    question: "Questions", "follow-up": "Follow-ups", "wrong-answer": "Wrong answers", number: "Numbers",
  };

  // ---- what is kept ---------------------------------------------------------------------------------

  const notice = speaker();
  let kept = true; // whether the browser keeps what is written
  let reviews = restore();

  function restore() {
    let text;
    try {
      text = localStorage.getItem(KEY);
      localStorage.setItem(`${KEY}-test`, "");
      localStorage.removeItem(`${KEY}-test`);
    } catch {
      notKept();
      return {};
    }
    try {
      return text === null ? {} : Core.read(text, Infinity);
    } catch (error) {
      localStorage.setItem(`${KEY}-unreadable`, text);
      localStorage.removeItem(KEY);
      notice.say(`The progress kept here is set aside, for ${error.message} You begin anew.`);
      return {};
    }
  }

  function notKept() {
    kept = false;
    notice.say(
      "This browser keeps nothing for this page, so your progress is lost when you leave. " +
        "Save it to a file before, and load that file next time.",
    );
  }

  // Another window may have written in the meantime.
  const latest = () => (kept && localStorage.getItem(KEY) !== null ? restore() : kept ? {} : reviews);

  function keep(changed) {
    reviews = changed;
    if (!kept) return;
    try {
      localStorage.setItem(KEY, Core.write(reviews));
    } catch {
      notKept();
    }
  }

  // ---- which card -----------------------------------------------------------------------------------

  let shown = null;
  let revealed = false;

  // New cards have another order each day; the day is the reader's.
  function seed() {
    const now = new Date();
    return [now.getFullYear(), now.getMonth() + 1, now.getDate()].join("-");
  }

  const wanted = () => Object.fromEntries(filters.map((filter) => [filter.name, filter.value]));
  const chosen = () => data.cards.filter((card) => Core.fits(card, wanted()));

  function next({ focus }) {
    [shown = null] = Core.deal(chosen(), reviews, Date.now(), seed());
    revealed = false;
    if (shown) drawCard();
    else drawNothing();
    drawCounts();
    if (focus) enter(box);
  }

  function tick() {
    if (shown === null && Core.counts(chosen(), reviews, Date.now()).due) next({ focus: false });
    else if (shown === null) drawNothing();
    drawCounts();
  }

  // ---- drawing --------------------------------------------------------------------------------------

  function choice(id, label, options) {
    const items = options.map(([value, text]) => h("option", { value, text }));
    const change = () => next({ focus: false });
    const select = h("select", { id: `practice-${id}`, name: id, change }, ...items);
    return [h("label", {}, h("span", { text: label }), select), select];
  }

  const distinct = (key) => [...new Set(data.cards.map((card) => String(card[key])))].sort();
  const ALL = ["", "all"];
  const [levelLabel, level] = choice("level", "Level", [ALL, ...distinct("level").map((v) => [v, v])]);
  const [topicLabel, topic] = choice("topic", "Topic", [ALL, ...distinct("topic").map((v) => [v, name(v)])]);
  const [kindLabel, kind] = choice("kind", "Kind", [ALL, ...Object.entries(KINDS)]);
  const filters = [level, topic, kind];

  const tally = h("p", { class: "practice-counts", "aria-live": "polite" });
  const box = h("div", { class: "practice-card", tabindex: "-1", role: "group", "aria-label": "Card" });

  function drawCounts() {
    const now = Date.now();
    const found = Core.counts(chosen(), reviews, now);
    const due = Core.nextDue(chosen(), reviews, now);
    const then = due === null ? "" : ` · next back in ${Core.span(due - now)}`;
    const parts = Object.entries(found).map(([state, count]) => `${count} ${state}`);
    const text = `${parts.join(" · ")}${then}`;
    if (tally.textContent !== text) tally.textContent = text;
  }

  function drawNothing() {
    const now = Date.now();
    const due = Core.nextDue(chosen(), reviews, now);
    const text = due === null
      ? "No card is of this level, topic and kind. Choose others above."
      : `Nothing is due now. The next card comes back in ${Core.span(due - now)}, ${clockOrDay(due, now)}.`;
    if (box.textContent !== text) swap(box, h("p", { class: "practice-nothing", text }));
  }

  function clockOrDay(due, now) {
    const then = new Date(due);
    if (then.toDateString() === new Date(now).toDateString()) {
      return `at ${then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })}`;
    }
    return `on ${then.toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" })}`;
  }

  function drawCard() {
    const state = Core.status(Core.historyOf(reviews, shown.id), Date.now());
    const about = [`Level ${shown.level}`, name(shown.topic), shown.kind.replace("-", " "), state].join(" · ");
    const front = h("div", { class: "practice-front", html: shown.front });
    const buttons = h("div", { class: "practice-buttons" });
    if (shown.hint) buttons.append(button("practice-hint", "Hint", "H", hint));
    buttons.append(button("practice-main", "Show the answer", "Space", reveal));
    swap(box, h("p", { class: "practice-about", text: about }), front, buttons);
    typeset(front);
  }

  function hint() {
    const asked = box.querySelector(".practice-hint");
    if (!asked) return false;
    const text = h("div", { class: "practice-hint-text", tabindex: "-1", html: shown.hint });
    asked.closest(".practice-buttons").before(text);
    asked.remove();
    typeset(text);
    text.focus();
  }

  function reveal() {
    if (!shown || revealed) return false;
    revealed = true;
    const back = h("div", { class: "practice-back", tabindex: "-1", html: shown.back });
    back.append(reread(shown.reread));
    box.querySelector(".practice-buttons").replaceWith(back, gradeButtons());
    typeset(back);
    back.focus({ preventScroll: true });
  }

  function gradeButtons() {
    const spans = Core.preview(Core.historyOf(reviews, shown.id), Date.now());
    const buttons = Core.GRADES.map((word, i) =>
      h("button", { type: "button", "data-grade": i + 1, click: () => grade(i + 1) },
        h("kbd", { text: String(i + 1) }), ` ${word} `, h("small", { text: Core.span(spans[i]) })),
    );
    const label = "How well did you know it?";
    return h("div", { class: "practice-grades", role: "group", "aria-label": label }, ...buttons);
  }

  function grade(number) {
    if (!revealed) return false;
    const { id } = shown;
    keep(Core.graded(latest(), id, number, Date.now()));
    const due = Core.scheduled(Core.historyOf(reviews, id)).due.getTime();
    if (kept) notice.say(`${Core.GRADES[number - 1]}: that card comes back in ${Core.span(due - Date.now())}.`);
    next({ focus: true });
  }

  // ---- files ----------------------------------------------------------------------------------------

  function save() {
    const url = URL.createObjectURL(new Blob([Core.write(latest())], { type: "application/json" }));
    h("a", { href: url, download: "kltutor-practice.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), Core.MINUTE);
    notice.say(`Saved ${words(Core.size(reviews), "review")} to kltutor-practice.json.`);
  }

  const words = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  async function load(input) {
    const [file] = input.files;
    if (!file) return;
    try {
      const theirs = Core.read(await file.text(), Date.now());
      const before = Core.size((reviews = latest()));
      keep(Core.merge(reviews, theirs));
      const known = new Set(data.cards.map((card) => card.id));
      const strange = Object.keys(theirs).filter((id) => !known.has(id)).length;
      const more = `Loaded ${words(Core.size(reviews) - before, "review")} that this page did not have.`;
      notice.say(strange ? `${more} Cards of the file that are not in this book: ${strange}.` : more);
      next({ focus: false });
    } catch (error) {
      notice.say(`${file.name} was not loaded: ${error.message} Nothing has changed.`);
    }
    input.value = "";
  }

  function forget() {
    const count = words(Core.size((reviews = latest())), "review");
    if (!confirm(`Forget ${count}? Only a file that you have saved brings them back.`)) return;
    keep({});
    notice.say(`Forgot ${count}.`);
    next({ focus: false });
  }

  function files() {
    const input = h("input", { type: "file", accept: ".json,application/json", change: () => load(input) });
    return h("div", { class: "practice-files" },
      h("button", { type: "button", click: save, text: "Save progress to a file" }),
      h("label", { class: "practice-load" }, "Load a file ", input),
      h("button", { type: "button", click: forget, text: "Forget all" }),
    );
  }

  // ---- start ----------------------------------------------------------------------------------------

  const legend = h("p", {
    class: "practice-legend",
    html: "Keys, once you have clicked the card: <kbd>Space</kbd> or <kbd>Enter</kbd> shows the answer, " +
      "<kbd>H</kbd> the hint; <kbd>1</kbd> to <kbd>4</kbd> grade it.",
  });
  const menus = h("div", { class: "practice-filters" }, levelLabel, topicLabel, kindLabel);
  place.replaceChildren(menus, tally, box, notice.node, legend, files());
  keys(place, {
    " ": reveal, enter: reveal, h: hint,
    1: () => grade(1), 2: () => grade(2), 3: () => grade(3), 4: () => grade(4),
  });
  addEventListener("storage", (event) => {
    if (event.key !== KEY && event.key !== null) return;
    reviews = latest();
    drawCounts();
  });
  setInterval(tick, 5000);
  next({ focus: false });
})();
