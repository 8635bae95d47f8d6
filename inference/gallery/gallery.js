
"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.querySelector("main"), form = document.querySelector("form");
  const nav = document.querySelector("nav"), output = document.querySelector("output");
  const box = document.querySelector("input[type=search]"), sort = document.getElementById("sort");
  const filter = document.getElementById("filter");
  const least = document.getElementById("least"), most = document.getElementById("most");
  const nodes = [...main.children], first = nodes.length, total = first + data.cards.length;
  const numbers = new Intl.NumberFormat("en");

  // ---- cards of later pages, and the words that are searched ----

  function makeNodes(wanted) {
    const missing = wanted.filter(i => !nodes[i]);
    if (!missing.length) return;
    const made = document.createElement("template");
    made.innerHTML = missing.map(i => data.cards[i - first]).join("");
    [...made.content.children].forEach((node, k) => { nodes[missing[k]] = node; });
  }

  const entities = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&" };
  const texts = new Array(total);

  function textOf(i) {
    return texts[i] ??= (i < first ? nodes[i].textContent
      : data.cards[i - first].replace(/<[^>]*>/g, "").replace(/&[#\w]+;/g, found => entities[found] ?? found)
    ).toLowerCase();
  }

  // ---- which photos, in which order ----

  let shown = [], page = 0;

  function passes(i, wanted) {
    const keys = data.keys, sure = keys.confidence?.[i] ?? null;
    const low = parseFloat(least?.value), high = parseFloat(most?.value);
    if (low > 0 && !(sure >= low) || high < 1 && !(sure !== null && sure <= high)) return false;
    switch (filter?.value) {
      case "references": if (!keys.references[i]) return false; break;
      case "none": if (keys.references[i]) return false; break;
      case "differ": if (keys.difference[i] === 0) return false; break;
      case "same": if (keys.difference[i] !== 0) return false; break;
    }
    return !wanted || textOf(i).includes(wanted);
  }

  function choose() {
    const wanted = box.value.trim().toLowerCase(), [key, sign] = sort.value.split(" ");
    shown = [];
    for (let i = 0; i < total; i++) if (passes(i, wanted)) shown.push(i);
    if (key) {
      const values = Float64Array.from(data.keys[key] ?? [], value => value === null ? Infinity : sign * value);
      shown.sort((a, b) => values[a] - values[b] || a - b);  // photos without a value come last
    }
    page = 0;
    show();
  }

  // ---- the cards of a page: those of the first screens at once, the others in the moments after ----

  const idle = window.requestIdleCallback ?? (work => setTimeout(() => work({ timeRemaining: () => 8 }), 50));
  const soon = 60, later = 100;  // cards
  let turn = 0;  // tells whether a later call of fill() has taken over

  function fill(visible, begin, mine) {
    if (mine !== turn) return;
    const some = visible.slice(begin, begin + (begin ? later : soon));
    makeNodes(some);
    if (begin) main.append(...some.map(i => nodes[i]));
    else main.replaceChildren(...some.map(i => nodes[i]));
    const end = begin + some.length;
    if (end < visible.length) setTimeout(() => fill(visible, end, mine));
  }

  function show() {
    const visible = shown.slice(page * data.size, (page + 1) * data.size);
    hideMap();
    fill(visible, 0, ++turn);
    if (!visible.length) main.append(Object.assign(document.createElement("p"), { className: "empty", textContent: "No photo fits." }));
    tell();
  }

  function tell() {
    const pages = Math.max(1, Math.ceil(shown.length / data.size)), place = pages > 1 ? `, page ${page + 1} of ${pages}` : "";
    output.textContent = shown.length === total ? `${numbers.format(total)} photos${place}`
      : `${numbers.format(shown.length)} of ${numbers.format(total)} photos${place}`;
    if (nav) showPages(pages);
  }

  // ---- pages ----

  const button = (text, step) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", () => turnTo(page + step));
    return made;
  };
  const back = button("‹ Previous", -1), on = button("Next ›", 1), list = document.createElement("select");
  list.setAttribute("aria-label", "Page");
  list.addEventListener("change", () => turnTo(Number(list.value)));
  nav?.append(back, list, on);

  function showPages(pages) {
    nav.hidden = pages < 2;
    if (list.length !== pages) list.replaceChildren(...Array.from({ length: pages }, (_, n) => new Option(`page ${n + 1}`, n)));
    list.value = page;
    back.disabled = page === 0;
    on.disabled = page === pages - 1;
  }

  function turnTo(wanted) {
    page = wanted;
    show();
    scrollTo(0, form.offsetTop);
  }

  // ---- where the model looked ----

  const dark = 0.82;  // how much of the light is taken where the model did not look at all
  let lit = null, held = false;

  function hideMap() {
    lit?.classList.remove("on");
    lit?.closest("figure")?.querySelector("canvas")?.remove();
    lit = null;
    held = false;
  }

  function showMap(word) {
    if (word === lit) return;
    hideMap();
    const figure = word.closest("figure"), picture = figure.querySelector("img");
    if (!picture) return;
    const [h, w] = figure.dataset.grid.split("x").map(Number);
    const maps = figure.maps ??= Uint8Array.from(atob(figure.dataset.maps), c => c.charCodeAt(0));
    const small = Object.assign(document.createElement("canvas"), { width: w, height: h });
    const pixels = new ImageData(w, h), start = Number(word.dataset.word) * h * w;
    for (let k = 0; k < h * w; k++) pixels.data[4 * k + 3] = 255 * dark * (1 - maps[start + k] / 255);
    small.getContext("2d").putImageData(pixels, 0, 0);
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth || 400;  // object-fit crops it as it crops the photo
    canvas.height = picture.naturalHeight || 300;
    canvas.setAttribute("aria-hidden", "true");
    const drawing = canvas.getContext("2d");
    drawing.imageSmoothingQuality = "high";
    drawing.drawImage(small, 0, 0, canvas.width, canvas.height);
    picture.parentElement.append(canvas);
    word.classList.add("on");
    lit = word;
  }

  const wordAt = event => event.target.closest("[data-word]");
  main.addEventListener("pointerover", event => {
    if (held || event.pointerType === "touch") return;
    const word = wordAt(event);
    if (word) showMap(word);
    else if (lit && !lit.closest(".caption").contains(document.activeElement)) hideMap();
  });
  main.addEventListener("pointerleave", () => { if (!held) hideMap(); });
  main.addEventListener("click", event => {
    const word = wordAt(event);
    if (!word) return;
    const again = held && word === lit;
    hideMap();
    if (!again) { showMap(word); held = true; }
  });
  main.addEventListener("focusin", event => {
    const word = event.target.matches(".caption[tabindex]:focus-visible") && event.target.querySelector("[data-word]");
    if (word) showMap(word);
  });
  main.addEventListener("focusout", event => { if (event.target.matches(".caption[tabindex]")) hideMap(); });
  main.addEventListener("keydown", event => {
    if (!event.target.matches(".caption[tabindex]")) return;
    if (event.key === "Escape") hideMap();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const words = [...event.target.querySelectorAll("[data-word]")];
    const turned = getComputedStyle(event.target).direction === "rtl" ? -step : step;
    showMap(words[(words.indexOf(lit) + turned + words.length) % words.length]);
  });

  // ---- beginning ----

  addEventListener("beforeprint", () => { for (const picture of document.images) picture.loading = "eager"; });
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  box.addEventListener("input", choose);
  for (const control of [sort, filter, least, most]) control?.addEventListener("input", choose);
  if (box.value || sort.value || filter?.value || least?.value || most?.value) choose();  // kept by a reload
  else { shown = Array.from({ length: total }, (_, i) => i); tell(); }  // the cards stand there already

  let next = 0;  // search answers at once where the words of later pages are ready
  idle(function prepare(deadline) {
    while (next < total && deadline.timeRemaining() > 2) textOf(next++);
    if (next < total) idle(prepare);
  });
}
