// Trains BERT4Rec on a folder of items.jsonl and histories.jsonl.

#include "common/training.hpp"

int main(int argc, char** argv) { return cli::run("train_model", argc, argv, training::run); }
