"use strict";
// Each photo that is dropped, chosen or pasted is a request of its own; a few go at a time.

const AT_A_TIME = 4;
const waiting = [];
let running = 0;

const drop = document.getElementById("drop");
const choose = document.getElementById("choose");
const photos = document.getElementById("photos");

function add(files) {
  for (const file of files) {
    const card = document.getElementById("card").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    image.onload = () => URL.revokeObjectURL(image.src);
    image.onerror = () => { image.removeAttribute("alt"); URL.revokeObjectURL(image.src); };
    card.classList.add("waiting");
    card.querySelector("small").textContent = file.name;
    photos.prepend(card);
    waiting.push([file, card]);
  }
  next();
}

function next() {
  while (running < AT_A_TIME && waiting.length) {
    running += 1;
    caption(...waiting.shift()).finally(() => { running -= 1; next(); });
  }
}

async function caption(file, card) {
  let lines;
  try {
    const answer = await fetch("caption", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    lines = content.photos[0].captions.map((one) => [one.text, one.confidence]);
  } catch (error) {
    card.classList.add("bad");
    lines = [[error.message || "the server does not answer", null]];
  }
  card.classList.remove("waiting");
  card.querySelector("ol").replaceChildren(...lines.map(line));
}

function line([text, confidence]) {
  const item = document.createElement("li");
  item.textContent = text;
  if (confidence !== null && confidence !== undefined) {
    const sure = document.createElement("span");
    sure.textContent = `${Math.round(100 * confidence)} % sure`;
    item.append(sure);
  }
  return item;
}

choose.addEventListener("change", () => { add(choose.files); choose.value = ""; });
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
addEventListener("drop", (event) => add(event.dataTransfer.files));
addEventListener("paste", (event) => add([...event.clipboardData.files]));
