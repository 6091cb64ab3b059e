const frames = JSON.parse(document.getElementById("frames").textContent);
const time = document.getElementById("time"), label = document.getElementById("frame");
const cell = document.getElementById("cell"), play = document.getElementById("play");
const gates = [...document.querySelectorAll(".maps .gate")], bars = [...document.querySelectorAll(".maps .open")];
let timer = null;

function show() {
  const frame = frames[time.value];
  label.textContent = frame.label;
  time.setAttribute("aria-valuetext", frame.label);
  frame.gates.forEach((value, i) => value === null || gates[i].setAttribute("fill-opacity", value / 100));
  frame.widths.forEach((share, i) => bars[i].setAttribute("width", share * bars[i].dataset.full));
}

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

function step() {
  time.value = +time.value + 1;
  show();
  if (+time.value === frames.length - 1) stop();
}

play.addEventListener("click", () => {
  if (timer) return stop();
  if (+time.value === frames.length - 1) time.value = 0;
  show();
  play.textContent = "Stop";
  timer = setInterval(step, Math.min(700, 9000 / frames.length));
});
time.addEventListener("input", () => { stop(); show(); });
document.addEventListener("pointerover", (event) => {
  const i = gates.indexOf(event.target);
  if (i < 0) return;
  const value = frames[time.value].gates[i];
  cell.textContent = `${gates[i].textContent}: ` + (value === null ? "no gate" : `gate ${(value / 100).toFixed(2)}`);
});
document.querySelector(".slider").hidden = frames.length < 2;
