// What the ten exercises share: the header, and how an exercise ends.

#ifndef BERT4REC_TESTS_EXERCISE_HPP
#define BERT4REC_TESTS_EXERCISE_HPP

#include <cstdio>
#include <iostream>

#include "bert4rec.hpp"

// checks() returns what was shown. A check that does not hold is a require() of the header, whose
// sentence says what was expected and what came.
template <class Checks>
int run_exercise(Checks&& checks) {
  try {
    const std::string shown = checks();
    std::cout << "mended: " << shown << "\n";
    return 0;
  } catch (const bert4rec::Error& error) {
    std::cout << "not yet: " << error.what() << "\n";
    return 1;
  }
}

// Four digits, as a person reads them.
inline std::string number(double x) {
  if (std::isnan(x)) return "nan";  // some libraries write -nan
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", x);
  return text;
}

template <class Numbers>
std::string list(const Numbers& numbers) {
  std::string text;
  for (const auto x : numbers) {
    text += (text.empty() ? "" : ", ") + number(static_cast<double>(x));
  }
  return text;
}

// |a - b| <= tolerance, and false where one of them is no number.
inline bool close(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

#endif  // BERT4REC_TESTS_EXERCISE_HPP
