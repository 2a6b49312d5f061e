"""How any artifact is made: found in the store or built, here or on a pool. It knows no stage."""
