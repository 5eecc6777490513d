"""Where in the depth of the model is the change? Fig. 3 of the DoRA paper, and a heatmap."""

import drawing
import saying
import sidebar
import streamlit as st

choice: sidebar.Choice = st.session_state["choice"]
kinds = choice.many_kinds

st.header("Where in the depth of the model?")
st.write(
    "ΔM and ΔD along the layers at each run's last step, as in Fig. 3 of the DoRA paper; then the "
    "same by layer and module kind."
)
drawing.draw(choice, choice.view("layers", kinds), "layers-chart")
for direction, title in ((False, "ΔM by layer and module"), (True, "ΔD by layer and module")):
    st.subheader(title)
    view = choice.view("heatmap", kinds, direction=direction)
    drawing.draw(choice, view, f"heatmap-{direction}")
if choice.rows(choice.results.modules)["step"].nunique() > 1:
    st.subheader("Over the steps")
    drawing.draw(choice, choice.view("trajectories", choice.first_kind), "trajectories-chart")
saying.save_csv(choice.rows(choice.results.modules), "layers", "layers-csv")
