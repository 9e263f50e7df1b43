"""Operations of a captured network: each knows its value, its bounds and its derivative."""
