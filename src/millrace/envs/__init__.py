"""Everything becomes one batched environment protocol. Autoreset, truncation and masks are settled here.

This room never imports torch: an environment process that needs no inference stays small.
"""
