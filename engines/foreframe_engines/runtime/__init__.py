"""Sessions that run one graph each. The libraries behind them are imported when a session is opened, not before."""
