"""Operations with their own forms for CPUs. Each file begins with the plain function."""
