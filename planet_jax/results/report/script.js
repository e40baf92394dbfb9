"use strict";
// Without a class the first chips of each gallery show; with one, all of its chips that are here.
const choice = document.getElementById("class");
const FIRST = 12;
function filter() {
  for (const gallery of document.querySelectorAll(".chips")) {
    let shown = 0;
    [...gallery.children].forEach((chip, place) => {
      chip.hidden = choice.value
        ? !chip.dataset.labels.split(" ").includes(choice.value)
        : place >= FIRST;
      shown += !chip.hidden;
    });
    gallery.previousElementSibling.textContent = `${shown} of ${gallery.children.length} shown`;
  }
}
if (choice) {
  choice.addEventListener("change", filter);
  filter();
}
