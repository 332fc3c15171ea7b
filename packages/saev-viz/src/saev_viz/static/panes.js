// A pane where elements with `data-feature` open that feature, `data-picture` that picture, `data-page` that page of a list,
// and `data-clear` clear a filter. `element`, `trigger` and `watch` come from gradio's HTML component.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-feature], [data-picture], [data-page], [data-clear]");
  if (!button || button.disabled) return;
  const { feature, picture, page, clear } = button.dataset;
  if (feature !== undefined) trigger("select", { feature: +feature });
  else if (picture !== undefined) trigger("input", { picture: +picture });
  else if (page !== undefined) trigger("input", { page: +page });
  else trigger("clear", { what: clear });
});
watch("value", () => { saevMark(); saevHeats(element); });
saevMark();
