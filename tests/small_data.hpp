// A small data set for tests: users walk along a ring of items, so that the next item is learnable.

#ifndef BERT4REC_TESTS_SMALL_DATA_HPP
#define BERT4REC_TESTS_SMALL_DATA_HPP

#include "bert4rec.hpp"

inline bert4rec::Dataset ring_data(std::size_t items, std::size_t users) {
  using namespace bert4rec;
  Dataset data;
  for (std::size_t i = 0; i < items; ++i) {
    Item item;
    item.id = static_cast<std::int64_t>(100 + i);
    item.english = join("Title ", i);
    data.catalogue.add(std::move(item));
  }
  const Key key = make_key(11);
  for (std::size_t user = 0; user < users; ++user) {
    const Key own = fold_in(key, user);
    const std::size_t length = 3 + below(own, 0, items - 3);
    std::size_t at = below(own, 1, items);
    std::vector<std::int32_t> history;
    for (std::size_t i = 0; i < length; ++i, at = (at + 1) % items) {
      history.push_back(static_cast<std::int32_t>(at));
    }
    data.histories.add(join("user ", user), history);
  }
  return data;
}

inline bert4rec::ModelConfig small_model() {
  bert4rec::ModelConfig model;
  model.hidden_size = 16;
  model.num_heads = 2;
  model.max_length = 12;
  return model;
}

inline bert4rec::TrainConfig small_train() {
  bert4rec::TrainConfig train;
  train.epochs = 4;
  train.batch_size = 8;
  train.save_every = 2;
  train.threads = 1;
  return train;
}

#endif  // BERT4REC_TESTS_SMALL_DATA_HPP
