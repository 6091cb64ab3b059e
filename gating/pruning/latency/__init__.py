"""How is the latency of models measured, in how much time, and which budget reaches a speed-up?"""
