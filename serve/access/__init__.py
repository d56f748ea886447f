"""Who may call the service: tokens, their scopes and their limits. No Ray, torch or HTTP."""
