"use strict";
// Buttons to copy tables, and the browser of dialogues. Text from the data enters the page as text
// only (textContent, values of attributes), never as markup. The list keeps in the document only the
// rows that can be seen; a dialogue's turns are unpacked when it is opened.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// --- copying tables ----------------------------------------------------------------------------

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed for a page from a file by some browsers
    const area = element("textarea", { class: "copied" }, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  return true;
}

for (const [name, texts] of Object.entries(JSON.parse(document.getElementById("tables").textContent))) {
  const buttons = element("div", { class: "copy" });
  ["LaTeX", "CSV"].forEach((form, place) => {
    const button = element("button", { type: "button" }, `Copy as ${form}`);
    button.addEventListener("click", async () => {
      button.textContent = (await copy(texts[place])) ? "Copied" : "Cannot copy here";
      setTimeout(() => (button.textContent = `Copy as ${form}`), 2000);
    });
    buttons.append(button);
  });
  document.getElementById(name).closest("figure").append(buttons);
}

// on a phone a plot is as wide as the page; a tap makes it large, and it scrolls in its place
for (const plot of document.querySelectorAll(".plot img")) {
  plot.addEventListener("click", () => plot.classList.toggle("large"));
}

// --- the browser of dialogues ------------------------------------------------------------------

(() => {
  const indexElement = document.getElementById("index");
  if (!indexElement) return;
  const index = JSON.parse(indexElement.textContent);
  const size = index.id.length;
  const [section, controls, browser, list, rows, reader, count, direction, search, domain, label, items, sort] =
    ["dialogues", "controls", "browser", "list", "rows", "reader", "count", "direction", "search",
      "domain", "label", "items", "sort"].map((name) => document.getElementById(name));
  section.hidden = false;

  const ROW_HEIGHT = 56; // as in page.css
  const CHUNKS_KEPT = 8;
  const LABELS = {
    1: { text: "hallucinated", sign: "\u25b2" },
    0: { text: "consistent", sign: "\u25cf" },
    null: { text: "not labelled", sign: "\u25cb" },
  };
  const ORDERS = {
    spike: ["low to high", "high to low"],
    id: ["A to Z", "Z to A"],
    domain: ["A to Z", "Z to A"],
    label: ["consistent first", "hallucinated first"],
  };
  const state = { shown: [], active: 0, opened: null, descending: true };

  // --- small helpers ---------------------------------------------------------------------------

  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const number = (value) => (value === null ? "none" : value.toFixed(3));
  const labelOf = (item) => LABELS[index.y[item]];
  const classOf = (item) => (index.y[item] === null ? "unlabelled" : labelOf(item).text);
  const domainOf = (item) => index.domains[index.domain[item]];

  const kindOf = (item) => {
    if (["train", "val"].includes(index.splits[index.split[item]])) return "trained";
    return index.evaluated[item] ? "evaluated" : "left out";
  };
  const BADGES = { trained: "the probe learnt from it", "left out": "left out of the figures" };
  const badge = (item) => {
    const told = BADGES[kindOf(item)];
    return told ? [element("span", { class: "kind-badge" }, told)] : [];
  };

  // a dialogue's address: its id, after its domain where another part of the page has that id too
  const address = [];
  const addresses = new Map();
  index.id.forEach((id, item) => {
    const long = `${domainOf(item)}/${id}`;
    address.push(addresses.has(id) || document.getElementById(id) ? long : id);
    for (const name of [id, long]) {
      if (!addresses.has(name) && !document.getElementById(name)) addresses.set(name, item);
    }
  });
  const hashOf = (item) => `#${encodeURIComponent(address[item])}`;

  // --- which dialogues, in which order ---------------------------------------------------------

  const collator = new Intl.Collator("en", { numeric: true });
  const ranks = (names) => {
    const rank = new Array(names.length);
    const order = names.map((_, place) => place);
    order.sort((a, b) => collator.compare(names[a], names[b])).forEach((place, r) => (rank[place] = r));
    return rank;
  };
  const idRank = ranks(index.id);
  const domainRank = ranks(index.domains);
  const keys = {
    spike: (item) => index.spike[item],
    id: (item) => idRank[item],
    domain: (item) => domainRank[index.domain[item]],
    label: (item) => index.y[item],
  };
  const searched = index.question.map((text, item) => `${text}\n${index.id[item]}`.toLowerCase());

  function choose() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const key = keys[sort.value];
    const sign = state.descending ? -1 : 1;
    const found = [];
    for (let item = 0; item < size; item++) {
      if (domain.value !== "" && index.domain[item] !== Number(domain.value)) continue;
      if (label.value !== "" && String(index.y[item]) !== label.value) continue;
      if (items.value !== "" && kindOf(item) !== items.value) continue;
      if (words.every((word) => searched[item].includes(word))) found.push(item);
    }
    found.sort((a, b) => {
      if (index.evaluated[a] !== index.evaluated[b]) return index.evaluated[b] - index.evaluated[a];
      const [first, second] = [key(a), key(b)];
      if (first === second) return idRank[a] - idRank[b];
      if (first === null || second === null) return first === null ? 1 : -1; // missing ones come last
      return sign * (first - second);
    });
    state.shown = found;
    state.active = Math.max(0, found.indexOf(state.opened));
    direction.textContent = ORDERS[sort.value][Number(state.descending)];
    direction.setAttribute("aria-label", `Order: ${direction.textContent}`);
    const total = size.toLocaleString("en");
    count.textContent = found.length === size
      ? `${total} dialogues`
      : `${found.length.toLocaleString("en")} of ${total} dialogues`;
    rows.style.height = `${found.length * ROW_HEIGHT}px`;
    list.scrollTop = 0;
    reveal();
  }

  // --- the list --------------------------------------------------------------------------------

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
    const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 8);
    const made = [];
    for (let place = first; place < last; place++) made.push(row(place));
    rows.replaceChildren(...made);
    if (state.shown.length) list.setAttribute("aria-activedescendant", `row-${state.active}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function row(place) {
    const item = state.shown[place];
    const about = `${domainOf(item)} \u00b7 ${index.id[item]}`;
    const spoken = `${index.question[item]}, ${labelOf(item).text}, SpikeScore ${number(index.spike[item])}, ${about}`;
    const made = element(
      "div",
      {
        id: `row-${place}`, role: "option", class: place === state.active ? "row active" : "row",
        "aria-selected": item === state.opened, "aria-label": spoken,
        "aria-posinset": place + 1, "aria-setsize": state.shown.length, "data-place": place,
      },
      element("span", { class: `mark ${classOf(item)}`, title: labelOf(item).text }, labelOf(item).sign),
      element(
        "div", {},
        element("div", { class: "question", dir: "auto" }, index.question[item]),
        element("div", { class: "about" }, ...badge(item), about),
      ),
      spark(item),
      element("span", { class: "value" }, index.spike[item] === null ? "\u2013" : number(index.spike[item])),
    );
    made.style.top = `${place * ROW_HEIGHT}px`;
    return made;
  }

  function reveal() {
    const top = state.active * ROW_HEIGHT;
    const room = list.clientHeight - ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top > list.scrollTop + room) list.scrollTop = top - room;
    drawRows();
  }

  function move(place) {
    state.active = Math.max(0, Math.min(state.shown.length - 1, place));
    reveal();
  }

  // --- trajectories ----------------------------------------------------------------------------

  const bends = (scores) => scores.map((score, k) =>
    k === 0 || k === scores.length - 1 ? null : Math.abs(scores[k + 1] - 2 * score + scores[k - 1]));

  function lines(scores, x, y) { // a path that breaks where a score is missing
    return scores.map((score, k) => (score === null ? "" :
      `${k === 0 || scores[k - 1] === null ? "M" : "L"}${x(k).toFixed(1)} ${y(score).toFixed(1)}`)).join("");
  }

  // one scale for all dialogues, so that their shapes can be compared
  const [low, high] = index.scores.reduce(([least, most], scores) => {
    for (const score of scores) {
      if (score !== null && score < least) least = score;
      if (score !== null && score > most) most = score;
    }
    return [least, most];
  }, [Infinity, -Infinity]);
  const span = high > low ? high - low : 1;

  function ticks() { // three or so round numbers between low and high
    const power = 10 ** Math.floor(Math.log10(span / 2));
    const gap = power * [5, 2, 1].find((factor) => factor === 1 || span / (factor * power) >= 2);
    const digits = Math.max(0, -Math.floor(Math.log10(gap) + 1e-9));
    const found = [];
    for (let k = Math.ceil(low / gap - 1e-9); k * gap <= high + 1e-9 * gap; k++) {
      found.push({ value: k * gap, text: (k * gap).toFixed(digits) });
    }
    return found;
  }

  function spikeOf(item) { // the three turns that make the spike: scores k-1, k, k+1 counted from 0
    const middle = index.turn[item] === null ? null : index.turn[item] - 1;
    return middle !== null && middle > 0 && middle < index.scores[item].length - 1 ? middle : null;
  }

  function spark(item) {
    const scores = index.scores[item];
    const x = (k) => 2 + (84 * k) / Math.max(1, scores.length - 1);
    const y = (score) => 25 - (22 * (score - low)) / span;
    const drawn = svg("svg", { class: "spark", viewBox: "0 0 88 28", "aria-hidden": "true" });
    drawn.append(svg("path", { class: "trace", d: lines(scores, x, y) }));
    const spike = spikeOf(item);
    if (spike !== null) {
      const three = scores.slice(spike - 1, spike + 2);
      drawn.append(svg("path", { class: "spike-line", d: lines(three, (k) => x(k + spike - 1), y) }));
    }
    return drawn;
  }

  function chart(item, width) {
    const scores = index.scores[item];
    const spike = spikeOf(item);
    const [left, right, top, bottom, floor, height] = [44, 12, 24, 124, 172, 192];
    const step = (width - left - right) / Math.max(1, scores.length);
    const x = (k) => left + step * (k + 0.5);
    const y = (score) => bottom - ((bottom - top) * (score - low)) / span;
    const drawn = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, height, role: "img",
      "aria-label": `Probe score of ${scores.length} turns: ${scores.slice(0, 100).map((score) => number(score)).join(", ")}.`
        + (spike === null ? "" : ` Spike at turn ${spike + 1}.`),
    });
    const text = (place, content, attributes = {}) => {
      const made = svg("text", { ...place, ...attributes });
      made.textContent = content;
      drawn.append(made);
    };
    if (spike !== null) {
      drawn.append(svg("rect", { class: "spike-band", x: x(spike) - step / 2, width: step, y: top - 8, height: floor - top + 8 }));
    }
    for (const tick of ticks()) {
      const level = y(tick.value);
      drawn.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: level, y2: level }));
      text({ x: left - 6, y: level + 4 }, tick.text, { "text-anchor": "end" });
    }
    text({ x: left, y: 11 }, "probe score");
    const bend = bends(scores);
    const steepest = bend.reduce((most, value) => Math.max(most, value), 1e-9);
    const barTop = bottom + 12;
    const single = scores.length <= 500; // more turns are a line, without a mark for each
    bend.forEach((value, k) => {
      if (value === null || Number.isNaN(value) || !(single || k === spike)) return;
      const tall = ((floor - barTop) * value) / steepest;
      drawn.append(svg("rect", {
        class: k === spike ? "spike-bend" : "bend", x: x(k) - step * 0.3, width: step * 0.6,
        y: floor - tall, height: tall,
      }));
    });
    drawn.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: floor, y2: floor }));
    text({ x: left - 6, y: floor - 12 }, "bend", { "text-anchor": "end" });
    drawn.append(svg("path", { class: "trace", d: lines(scores, x, y) }));
    if (spike !== null) {
      drawn.append(svg("path", { class: "spike-line", d: lines(scores.slice(spike - 1, spike + 2), (k) => x(k + spike - 1), y) }));
    }
    scores.forEach((score, k) => {
      if (!single && k !== spike) return;
      if (score !== null) {
        drawn.append(svg("circle", { class: k === spike ? "spike-point" : "point", cx: x(k), cy: y(score), r: k === spike ? 5 : 3 }));
      }
      const labelled = k === 0 || k === spike || k === scores.length - 1 || ((k + 1) % 5 === 0 && step * 5 > 24);
      const crowded = spike !== null && k !== spike && Math.abs(k - spike) * step < 16;
      if (labelled && !crowded) {
        text({ x: x(k), y: floor + 14 }, k + 1, { "text-anchor": "middle", class: k === spike ? "spike-text" : "" });
      }
      const hit = svg("rect", { class: "hit", x: x(k) - step / 2, width: step, y: top - 8, height: floor - top + 8, "data-turn": k + 1 });
      const hint = svg("title");
      hint.textContent = `turn ${k + 1}: ${number(score)}`;
      hit.append(hint);
      drawn.append(hit);
    });
    if (spike !== null) {
      const anchor = x(spike) > width - 140 ? "end" : x(spike) < left + 140 ? "start" : "middle";
      const shift = { end: step / 2, start: -step / 2, middle: 0 }[anchor];
      const clear = anchor === "start" && x(spike) < left + 80 ? 80 : 0; // past the axis title
      text({ x: Math.max(x(spike) + shift, left + clear), y: 11 }, `spike ${number(index.spike[item])} at turn ${spike + 1}`,
        { "text-anchor": anchor, class: "spike-text" });
    }
    return drawn;
  }

  // --- one dialogue ----------------------------------------------------------------------------

  const chunks = new Map(); // chunk number -> promise of its dialogues, the latest CHUNKS_KEPT

  function texts(item) {
    const wanted = Math.floor(item / index.chunk);
    const found = chunks.get(wanted) ?? unpack(wanted);
    chunks.delete(wanted);
    chunks.set(wanted, found);
    if (chunks.size > CHUNKS_KEPT) chunks.delete(chunks.keys().next().value);
    return found.then((dialogues) => dialogues[item % index.chunk]);
  }

  async function unpack(wanted) {
    const packed = atob(document.getElementById(`chunk-${wanted}`).textContent);
    const bytes = new Uint8Array(packed.length);
    for (let place = 0; place < packed.length; place++) bytes[place] = packed.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  async function open(item) {
    state.opened = item;
    history.replaceState(null, "", hashOf(item));
    drawRows();
    let content;
    try {
      if (typeof DecompressionStream === "undefined") {
        throw new Error("this browser has no DecompressionStream; a later version of it does");
      }
      content = await texts(item);
    } catch (error) {
      content = [null, [], "", `The texts cannot be unpacked: ${error.message}.`];
    }
    if (state.opened !== item) return; // another one was opened meanwhile
    show(item, ...content);
  }

  function show(item, gold, turns, judge, problem = "") {
    const place = state.shown.indexOf(item);
    const button = (text, spoken, target) => {
      const made = element("button", { type: "button", "aria-label": spoken }, text);
      made.disabled = target === undefined;
      made.addEventListener("click", () => step(target));
      return made;
    };
    const close = element("button", { type: "button" }, "Close");
    close.addEventListener("click", shut);
    const bar = element(
      "div", { class: "bar" },
      element("a", { class: "about", href: hashOf(item), title: "Link to this dialogue" },
        `${domainOf(item)} \u00b7 ${index.id[item]}`),
      button("\u2190", "Previous dialogue", state.shown[place - 1]),
      button("\u2192", "Next dialogue", state.shown[place + 1]), close,
    );
    const drawing = element("div", { class: "chart" });
    reader.replaceChildren(
      bar, element("h3", { dir: "auto" }, index.question[item]), facts(item, gold, judge), drawing,
      problem ? element("p", { class: "problem", role: "alert" }, problem) : turnList(item, turns),
    );
    browser.classList.add("reading");
    if (index.scores[item].length) drawing.append(chart(item, drawing.clientWidth));
    else drawing.append(element("p", { class: "problem" }, "This dialogue has no scores."));
    reader.scrollTop = 0;
    reader.focus({ preventScroll: true });
    const box = reader.getBoundingClientRect(); // on a phone the list was above, and is gone
    if (box.top < 0 || box.top > window.innerHeight / 2) reader.scrollIntoView({ behavior: "instant" });
  }

  function facts(item, gold, judge) {
    const made = element("dl");
    const add = (name, value, attributes = {}) =>
      made.append(element("dt", {}, name), element("dd", attributes, value));
    add("label", element("span", { class: classOf(item) }, `${labelOf(item).sign} `));
    made.lastChild.append(labelOf(item).text);
    if (gold !== null) add("gold answer", gold || "not recorded", { dir: "auto" });
    const spike = index.spike[item];
    add("SpikeScore", spike === null ? "none" : `${number(spike)} at turn ${index.turn[item]}`);
    const split = index.splits[index.split[item]];
    if (judge) add("judge", judge, { dir: "auto" });
    if (split) add("split", split);
    const told = badge(item);
    if (told.length) add("note", told[0]);
    return made;
  }

  function turnList(item, turns) {
    const made = element("ol", { class: "turns" });
    turns.forEach(([kind, prompt, response], k) => {
      const score = index.scores[item][k] ?? null;
      const isSpike = index.turn[item] === k + 1;
      const head = element(
        "header", {}, element("strong", {}, `Turn ${k + 1}`), element("span", { class: "kind" }, kind));
      if (isSpike) head.append(element("span", { class: "badge" }, `spike ${number(index.spike[item])}`));
      head.append(element("span", { class: "value" }, score === null ? "no score" : number(score)));
      made.append(element(
        "li", { class: isSpike ? "turn spike" : "turn", "data-turn": k + 1 }, head,
        element("p", { class: "prompt", dir: "auto" }, prompt),
        element("p", { class: "response", dir: "auto" }, response || "(no text)"),
      ));
    });
    return made;
  }

  function step(item) { // to a neighbour in the list
    if (item === undefined) return;
    move(state.shown.indexOf(item));
    open(item);
  }

  function shut() {
    if (state.opened === null) return;
    state.opened = null;
    history.replaceState(null, "", location.pathname + location.search);
    browser.classList.remove("reading");
    reader.replaceChildren(element("p", { class: "empty" }, "No dialogue chosen"));
    list.focus({ preventScroll: true });
    reveal();
    if (list.getBoundingClientRect().top < 0) list.scrollIntoView({ behavior: "instant" });
  }

  // --- events ----------------------------------------------------------------------------------

  index.domains.map((name, place) => [name, place])
    .sort((a, b) => domainRank[a[1]] - domainRank[b[1]])
    .forEach(([name, place]) => domain.append(element("option", { value: place }, name)));
  for (const control of [search, domain, label, items]) control.addEventListener("input", choose);
  sort.addEventListener("input", () => {
    state.descending = sort.value === "spike" || sort.value === "label";
    choose();
  });
  direction.addEventListener("click", () => {
    state.descending = !state.descending;
    choose();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());

  let waiting = false;
  list.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawRows();
    });
  });
  list.addEventListener("click", (event) => {
    const hit = event.target.closest(".row");
    if (!hit) return;
    state.active = Number(hit.dataset.place);
    open(state.shown[state.active]);
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
    const target = {
      ArrowDown: state.active + 1, ArrowUp: state.active - 1, PageDown: state.active + page,
      PageUp: state.active - page, Home: 0, End: state.shown.length - 1,
    }[event.key];
    if (target !== undefined) move(target);
    else if ((event.key === "Enter" || event.key === " ") && state.shown.length) open(state.shown[state.active]);
    else if (event.key === "Escape") shut();
    else return;
    event.preventDefault();
  });
  reader.addEventListener("keydown", (event) => {
    const place = state.shown.indexOf(state.opened);
    if (event.key === "Escape") shut();
    else if (event.key === "ArrowLeft") step(state.shown[place - 1]);
    else if (event.key === "ArrowRight") step(state.shown[place + 1]);
    else return;
    event.preventDefault();
  });
  reader.addEventListener("click", (event) => {
    const turn = event.target.dataset?.turn;
    if (turn && event.target.classList.contains("hit")) {
      reader.querySelector(`.turn[data-turn="${turn}"]`).scrollIntoView({ block: "start" });
    }
  });
  new ResizeObserver(() => {
    drawRows();
    const drawing = reader.querySelector(".chart");
    if (drawing?.querySelector("svg")) drawing.replaceChildren(chart(state.opened, drawing.clientWidth));
  }).observe(section);

  reader.replaceChildren(element("p", { class: "empty" }, "No dialogue chosen"));
  choose();
  const follow = () => {
    let wanted;
    try {
      wanted = addresses.get(decodeURIComponent(location.hash.slice(1)));
    } catch { // a hash that is no encoding of a text
      return;
    }
    if (wanted === undefined || wanted === state.opened) return;
    move(Math.max(0, state.shown.indexOf(wanted)));
    open(wanted);
  };
  window.addEventListener("hashchange", follow);
  follow();
})();
