// Put a field above each long table that hides the rows without the typed words.
document.querySelectorAll(".md-content table").forEach((table) => {
  const rows = [...table.querySelectorAll("tbody tr")];
  if (rows.length < 60) return;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = `Filter ${rows.length} rows, such as: llama`;
  field.className = "table-filter";
  field.setAttribute("aria-label", "Filter the rows of the table");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
  });
  (table.closest(".md-typeset__scrollwrap") || table).before(field);
});
