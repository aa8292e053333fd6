"""Operations on segments and sparse patterns, dropout and just-in-time compilation."""
