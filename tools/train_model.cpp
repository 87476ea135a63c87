// Trains BERT4Rec on a folder of items.jsonl and histories.jsonl.

#include "common/training.hpp"

int main(int argc, char** argv) {
  return cli::run("train_model", argc, argv, [](int count, char** words) {
    return training::run(count, words, bert4rec::alone());
  });
}
