// What the practice page computes: when a card comes back, which comes next, what a file of progress may
// hold, which five questions make a mock interview. Nothing here touches the page, its clock or its storage.
//
// Progress is a list of reviews for each card, {"Q01": [[milliseconds, grade], …], …}, and nothing else.
// What FSRS knows of a card follows from its reviews, so two files of progress are joined by joining lists.
const PracticeCore = (() => {
  const FORMAT = "kltutor practice";
  const VERSION = 1;
  const GRADES = ["Again", "Hard", "Good", "Easy"]; // 1 to 4, as FSRS counts them
  const FIVE = 5; // questions of a mock interview
  const MINUTE = 60_000;
  const DAY = 1440 * MINUTE;
  const NONE = [];
  // The library's own parameters. Without its random part, so that equal reviews give equal days.
  const scheduler = FSRS.fsrs({ enable_fuzz: false });

  // ---- order ----------------------------------------------------------------------------------------

  // 32 bits that depend on every byte of a text: FNV-1a, then the last steps of MurmurHash3.
  function hash(text) {
    let bits = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) bits = Math.imul(bits ^ byte, 0x01000193);
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return (bits ^ (bits >>> 16)) >>> 0;
  }

  // An order that seed and ids fix: what is left out does not change the order of the rest.
  function shuffled(items, seed) {
    const keyed = items.map((item) => [hash(`${seed}:${item.id}`), item]);
    return keyed.sort(([a, x], [b, y]) => a - b || (x.id < y.id ? -1 : 1)).map(([, item]) => item);
  }

  // ---- schedule -------------------------------------------------------------------------------------

  const historyOf = (reviews, id) => (Object.hasOwn(reviews, id) ? reviews[id] : NONE);
  const memory = new WeakMap(); // histories are never changed, only replaced

  // What FSRS knows of a card after its reviews.
  function scheduled(history) {
    if (!memory.has(history)) {
      let card = FSRS.createEmptyCard(new Date(history.length ? history[0][0] : 0));
      for (const [at, grade] of history) card = scheduler.next(card, new Date(at), grade).card;
      memory.set(history, card);
    }
    return memory.get(history);
  }

  // "new": never graded. "due": to be asked now. "learning": comes back within the hour. "learnt": on a later day.
  function status(history, now) {
    if (!history.length) return "new";
    const { due, state } = scheduled(history);
    if (due.getTime() <= now) return "due";
    return state === FSRS.State.Review ? "learnt" : "learning";
  }

  function counts(cards, reviews, now) {
    const found = { due: 0, new: 0, learning: 0, learnt: 0 };
    for (const card of cards) found[status(historyOf(reviews, card.id), now)] += 1;
    return found;
  }

  // The cards to ask now: those due, the longest overdue first, then the new ones, shuffled.
  function deal(cards, reviews, now, seed) {
    const dueAt = (card) => scheduled(historyOf(reviews, card.id)).due.getTime();
    const are = (wanted) => cards.filter((card) => status(historyOf(reviews, card.id), now) === wanted);
    return [...are("due").sort((a, b) => dueAt(a) - dueAt(b)), ...shuffled(are("new"), seed)];
  }

  // When the next card comes back that is not due yet; null if none was graded.
  function nextDue(cards, reviews, now) {
    const later = cards
      .map((card) => historyOf(reviews, card.id))
      .filter((history) => history.length)
      .map((history) => scheduled(history).due.getTime())
      .filter((due) => due > now);
    return later.length ? Math.min(...later) : null;
  }

  // Milliseconds until the card comes back, for each of the four grades.
  function preview(history, now) {
    const at = moment(history, now);
    const card = history.length ? scheduled(history) : FSRS.createEmptyCard(new Date(at));
    return GRADES.map((_, i) => scheduler.next(card, new Date(at), i + 1).card.due.getTime() - at);
  }

  // Reviews are in the order of time even if the clock has been set back.
  const moment = (history, now) => (history.length ? Math.max(now, history.at(-1)[0] + 1) : now);

  function graded(reviews, id, grade, now) {
    const history = historyOf(reviews, id);
    return { ...reviews, [id]: [...history, [moment(history, now), grade]] };
  }

  // A length of time in words: 10 min, 8 days, 3 months.
  function span(milliseconds) {
    const some = (number, unit) => `${number} ${unit}${number === 1 ? "" : "s"}`;
    const minutes = Math.ceil(milliseconds / MINUTE);
    if (minutes < 60) return `${Math.max(minutes, 1)} min`;
    if (minutes < 1440) return `${Math.round(minutes / 60)} h`;
    const days = Math.round(milliseconds / DAY);
    if (days < 60) return some(days, "day");
    if (days < 730) return some(Math.round(days / 30.44), "month");
    return some(Math.round(days / 365.25), "year");
  }

  const fits = (card, wanted) =>
    Object.entries(wanted).every(([name, value]) => value === "" || String(card[name]) === value);

  // ---- files ----------------------------------------------------------------------------------------

  const size = (reviews) => Object.values(reviews).reduce((sum, history) => sum + history.length, 0);

  const write = (reviews) => JSON.stringify({ format: FORMAT, version: VERSION, reviews });

  // The reviews that a text holds; an Error says why it is refused.
  function read(text, now) {
    const file = parsed(text);
    if (!isRecord(file) || file.format !== FORMAT) throw new Error("it was not written by this page.");
    if (file.version !== VERSION) {
      throw new Error(`it has version ${file.version}; this page reads version ${VERSION}.`);
    }
    if (!isRecord(file.reviews)) throw new Error("it holds no reviews.");
    for (const [id, history] of Object.entries(file.reviews)) check(id, history, now);
    return file.reviews;
  }

  function parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      throw new Error("it is not JSON.");
    }
  }

  const isRecord = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

  function check(id, history, now) {
    const refuse = (why) => {
      throw new Error(`${id.slice(0, 40)}: ${why}`);
    };
    if (!/^[A-Za-z0-9-]+$/.test(id)) refuse("this is no card's name.");
    if (!Array.isArray(history) || !history.length) refuse("a list of reviews is expected.");
    let last = 0;
    for (const review of history) {
      if (!Array.isArray(review) || review.length !== 2) refuse("a review is a time and a grade.");
      const [at, grade] = review;
      if (!Number.isSafeInteger(at) || at <= last) refuse("times in milliseconds, each after the last, are expected.");
      if (at > now + DAY) refuse("a review lies in the future.");
      if (![1, 2, 3, 4].includes(grade)) refuse("a grade is 1, 2, 3 or 4.");
      last = at;
    }
  }

  // The reviews of both, each once. An Error if they contradict each other.
  function merge(mine, theirs) {
    const merged = { ...mine };
    for (const [id, history] of Object.entries(theirs)) {
      const byTime = new Map(historyOf(mine, id));
      for (const [at, grade] of history) {
        if ((byTime.get(at) ?? grade) !== grade) throw new Error(`${id}: it has another grade for a review made here.`);
        byTime.set(at, grade);
      }
      merged[id] = [...byTime].sort(([a], [b]) => a - b);
    }
    return merged;
  }

  // ---- mock interview -------------------------------------------------------------------------------

  const pairs = (items) => items.flatMap((a, i) => items.slice(i + 1).map((b) => [a, b]));

  // Two questions of level 1, two of level 2 and one of level 3, on as many topics as there can be; the seed
  // chooses among such fives.
  function draw(questions, seed) {
    const [one, two, three] = [1, 2, 3].map((level) =>
      shuffled(questions.filter((question) => question.level === level), seed),
    );
    let best = [];
    let most = 0;
    for (const a of pairs(one)) {
      for (const b of pairs(two)) {
        for (const c of three) {
          const topics = new Set([...a, ...b, c].map((question) => question.topic)).size;
          if (topics > most) [best, most] = [[...a, ...b, c], topics];
          if (most === FIVE) return best;
        }
      }
    }
    return best;
  }

  const points = (round) => round.ticked.filter(Boolean).length;

  // What five rounds, {question, ticked}, come to, and the sections of those that missed a point.
  function score(rounds) {
    const missed = rounds.filter((round) => points(round) < round.ticked.length);
    const reread = new Map(missed.flatMap((round) => round.question.reread));
    return {
      points: rounds.reduce((sum, round) => sum + points(round), 0),
      of: rounds.reduce((sum, round) => sum + round.ticked.length, 0),
      reread: [...reread].sort(([a], [b]) => (a < b ? -1 : 1)), // by chapter
    };
  }

  // Minutes and seconds as a clock shows them; a second that has begun counts.
  function clock(milliseconds) {
    const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }

  return {
    GRADES, MINUTE, clock, counts, deal, draw, fits, graded, hash, historyOf, merge, nextDue, points, preview,
    read, scheduled, score, shuffled, size, span, status, write,
  };
})();
