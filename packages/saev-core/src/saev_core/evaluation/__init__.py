"""How good an SAE is: held-out measurements, known truth, the Pareto front, agreement across seeds."""
