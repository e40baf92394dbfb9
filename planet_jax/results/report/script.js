"use strict";
// Show the chips of the chosen class, or without a class the first chips of each gallery.
const choice = document.getElementById("class");
const FIRST_CHIPS = 12; // as in gallery.py
function filter() {
  for (const gallery of document.querySelectorAll(".chips")) {
    let shown = 0;
    [...gallery.children].forEach((chip, index) => {
      chip.hidden = choice.value
        ? !chip.dataset.labels.split("\n").includes(choice.value)
        : index >= FIRST_CHIPS;
      shown += !chip.hidden;
    });
    gallery.previousElementSibling.textContent = `${shown} of ${gallery.children.length} shown`;
  }
}
if (choice) {
  choice.addEventListener("change", filter);
  filter();
}
