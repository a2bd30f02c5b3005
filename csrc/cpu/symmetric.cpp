#include "cpu/symmetric.h"

#include <cmath>
#include <cstring>
#include <numeric>

namespace fastdense::cpu {
namespace {

constexpr float kNone = kLeftOut / 2;  // the largest of no scores: above what is left out, below every score
constexpr float kBeyond = -kLeftOut;   // the reference of a column that is nobody's: its exponentials are zero

int64_t chunks_that_fit(const Problem& problem, const Plan& plan, int64_t bytes) {
  return bytes / (plan.chunk_rows * problem.columns * static_cast<int64_t>(sizeof(float)));
}

}  // namespace

Symmetric::Symmetric(const Problem& problem, const Plan& plan, const Kernels& kernels, const Gradients& gradients,
                     int64_t keep_bytes, Hardest* hardest)
    : problem_(problem),
      plan_(plan),
      kernels_(kernels),
      hardest_(hardest),
      gradients_wanted_(gradients.wanted()),
      chunks_(ceil_div(problem.rows, plan.chunk_rows)),
      kept_chunks_(gradients.wanted() ? std::min(chunks_, chunks_that_fit(problem, plan, keep_bytes)) : 0),
      log2_scale_(problem.scale * kLog2E),
      products_(problem, plan, kernels, gradients),
      kept_(kept_chunks_ * plan.chunk_rows * problem.columns),
      row_sums_(products_.groups() * plan.chunk_rows / kPanel),
      column_sums_(problem.rows, ColumnSums{kNone, 0, 0, 0, 0}),
      target_score_(problem.rows),
      queries_(problem.rows),
      queries_of_(problem.columns + 1) {
  for (auto [direction, size] : {std::pair{&rows_, round_up(problem.rows, kPanel)}, {&columns_, problem.columns}}) {
    direction->reference.resize(size);
    direction->factor.resize(size);
    direction->share.resize(size);
  }
}

void Symmetric::run(RowResult* results) {
  sort_queries();
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum_chunk(chunk, results);
  finish_columns(results);
  if (!gradients_wanted_) return;
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) add_gradients(chunk, results);
}

void Symmetric::sort_queries() {
  for (int64_t i = 0; i < problem_.rows; ++i) ++queries_of_[problem_.target[i] + 1];
  std::partial_sum(queries_of_.begin(), queries_of_.end(), queries_of_.begin());
  std::vector<int64_t> place(queries_of_.begin(), queries_of_.end() - 1);
  for (int64_t i = 0; i < problem_.rows; ++i) queries_[place[problem_.target[i]]++] = i;
}

void Symmetric::load(int64_t chunk) {
  const int64_t first = chunk * plan_.chunk_rows;
  products_.load(first, std::min(plan_.chunk_rows, problem_.rows - first), nullptr);
}

float* Symmetric::kept(int64_t chunk, int64_t panel, int64_t column) {
  return kept_.data() + ((chunk * plan_.chunk_rows / kPanel + panel) * problem_.columns + column) * kPanel;
}

void Symmetric::sum_chunk(int64_t chunk, RowResult* results) {
  load(chunk);
  products_.score(products_.all_panels(), {0, problem_.columns}, [&](const ScoredBlock& block) {
    products_.mask(block, target_score_.data() + products_.first_row());
    if (hardest_) hardest_->offer(products_.first_row(), block);
    add_to_row_sums(block);
    add_to_column_sums(block);
    if (keeps(chunk)) {
      std::memcpy(kept(chunk, block.panel, block.columns.first), block.scores,
                  block.columns.count * kPanel * sizeof(float));
    }
  });
  finish_rows(results);
}

void Symmetric::add_to_row_sums(const ScoredBlock& block) {
  RunningSums* running = &row_sums_[block.group * products_.panels() + block.panel];
  if (block.first_of_group) {
    *running = RunningSums{};
    std::fill_n(running->reference, kPanel, kNone);
  }
  float largest[kPanel];
  std::copy_n(running->reference, kPanel, largest);
  kernels_.raise(block.scores, block.columns.count, largest);
  refer_to(largest, problem_.scale, running);
  kernels_.exponentiate(
      {block.scores, block.columns.count, running->reference, log2_scale_, problem_.label_smoothing > 0, nullptr},
      &running->sums);
  running->columns += block.columns.count;
}

void Symmetric::refer_to(const float* reference, double scale, RunningSums* running) {
  PanelSums& sums = running->sums;
  for (int lane = 0; lane < kPanel; ++lane) {
    if (reference[lane] == running->reference[lane]) continue;
    const double moved = static_cast<double>(running->reference[lane]) - reference[lane];
    const double factor = std::exp(moved * scale);
    sums.moments[lane] = factor * (sums.moments[lane] + moved * sums.exponentials[lane]);
    sums.exponentials[lane] *= factor;
    sums.excess[lane] += moved * (static_cast<double>(running->columns) - sums.left_out[lane]);
    running->reference[lane] = reference[lane];
  }
}

void Symmetric::add_to_column_sums(const ScoredBlock& block) {
  for (int64_t j = 0; j < block.columns.count; ++j) {
    const int64_t* queries = queries_of_.data() + block.columns.first + j;
    // With ids, what another query of the same target leaves out is what the query itself leaves out.
    const bool alone = queries[1] - queries[0] == 1 || problem_.passage_id != nullptr;
    for (int64_t k = queries[0]; k < queries[1]; ++k) {
      add_query_of_column(block, block.scores + j * kPanel, k, alone);
    }
  }
}

// The k-th query in the order of targets. If not alone, other queries of this column are negatives of it.
void Symmetric::add_query_of_column(const ScoredBlock& block, const float* scores, int64_t k, bool alone) {
  ColumnSums* sums = &column_sums_[queries_[k]];
  if (alone) return kernels_.add_column(scores, log2_scale_, sums);
  float lanes[kPanel];
  std::copy_n(scores, kPanel, lanes);
  const int64_t first = products_.first_row() + block.panel * kPanel, column = problem_.target[queries_[k]];
  for (int64_t other = queries_of_[column]; other < queries_of_[column + 1]; ++other) {
    const int64_t lane = queries_[other] - first;
    if (other != k && lane >= 0 && lane < kPanel) lanes[lane] = target_score_[queries_[other]];
  }
  kernels_.add_column(lanes, log2_scale_, sums);
}

void Symmetric::finish_rows(RowResult* results) {
  const int64_t panels = products_.panels(), first_row = products_.first_row(), count = products_.count();
  on_threads(panels, products_.groups() * panels * kPanel * 40.0, [&](const auto& next) {
    for (int64_t panel = next(); panel >= 0; panel = next()) {
      RunningSums& total = row_sums_[panel];
      for (int64_t group = 1; group < products_.groups(); ++group) {
        RunningSums& more = row_sums_[group * panels + panel];
        float largest[kPanel];
        for (int lane = 0; lane < kPanel; ++lane) largest[lane] = std::max(total.reference[lane], more.reference[lane]);
        refer_to(largest, problem_.scale, &total);
        refer_to(largest, problem_.scale, &more);
        add(more.sums, &total.sums);
        total.columns += more.columns;
      }
      for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, count); ++i) {
        finish_row_of(first_row + i, total, static_cast<int>(i % kPanel), results);
      }
    }
  });
}

void Symmetric::finish_row_of(int64_t row, const RunningSums& total, int lane, RowResult* results) {
  const PanelSums& sums = total.sums;
  const int64_t taking_part = problem_.columns - static_cast<int64_t>(sums.left_out[lane]) + 1;
  const float reference = total.reference[lane];
  results[row] = finish_row({sums.exponentials[lane], sums.moments[lane], sums.excess[lane], 0.0F, taking_part},
                            inputs(row, reference));
  rows_.reference[row] = reference;
  rows_.factor[row] = results[row].factor;
  rows_.share[row] = share(row, static_cast<double>(taking_part));
  results[row].factor = 1.0F;
}

// Each direction counts half.
RowInputs Symmetric::inputs(int64_t query, float reference) const {
  return {target_score_[query], reference,   problem_.weight[query] / 2,
          problem_.scale,       log2_scale_, problem_.label_smoothing};
}

float Symmetric::share(int64_t query, double taking_part) const {
  const double weight = static_cast<double>(problem_.weight[query]) / 2 * problem_.scale;
  return static_cast<float>(weight * problem_.label_smoothing / taking_part);
}

void Symmetric::finish_columns(RowResult* results) {
  const int64_t blocks = ceil_div(problem_.columns, plan_.block_columns);
  on_threads(blocks, problem_.rows * 500.0, [&](const auto& next) {
    for (int64_t block = next(); block >= 0; block = next()) {
      const int64_t end = std::min((block + 1) * plan_.block_columns, problem_.columns);
      for (int64_t j = block * plan_.block_columns; j < end; ++j) finish_column(j, results);
    }
  });
}

void Symmetric::finish_column(int64_t column, RowResult* results) {
  const int64_t first = queries_of_[column], end = queries_of_[column + 1];
  double factor = 0, share_sum = 0;
  float reference = kNone;
  for (int64_t k = first; k < end; ++k) reference = std::max(reference, column_sums_[queries_[k]].reference);
  for (int64_t k = first; k < end; ++k) {
    const int64_t query = queries_[k];
    const ColumnSums& sums = column_sums_[query];
    const RowResult result =
        finish_row({sums.exponentials, sums.moments, sums.excess, 0.0F, static_cast<int64_t>(sums.others) + 1},
                   inputs(query, sums.reference));
    results[query].loss += result.loss;
    results[query].scale_grad += result.scale_grad;
    results[query].target_gradient += result.target_gradient;
    factor += result.factor;
    share_sum += share(query, sums.others + 1);
  }
  if (end - first > 1 && problem_.passage_id == nullptr)
    factor = finish_shared_column(column, reference, share_sum, results);
  columns_.reference[column] = reference == kNone ? kBeyond : reference;
  columns_.factor[column] = static_cast<float>(factor);
  columns_.share[column] = static_cast<float>(share_sum);
}

// Where several queries share a target and no ids tell them apart, each is a negative of the others: one softmax for
// all, whose gradient reaches the others' targets, too. Returns its factor, relative to the column's largest score but
// one, or but none.
double Symmetric::finish_shared_column(int64_t column, float reference, double share_sum, RowResult* results) const {
  const int64_t first = queries_of_[column], end = queries_of_[column + 1];
  const auto exponential = [&](int64_t query) {
    return std::exp((static_cast<double>(target_score_[query]) - reference) * problem_.scale);
  };
  double all = 0, weight = 0;
  for (int64_t k = first; k < end; ++k) {
    const ColumnSums& sums = column_sums_[queries_[k]];
    if (sums.reference == reference) all = sums.exponentials + exponential(queries_[k]);
    weight += static_cast<double>(problem_.weight[queries_[k]]) / 2 * problem_.scale;
  }
  for (int64_t k = first; k < end; ++k) {
    const int64_t query = queries_[k];
    const double others = weight - static_cast<double>(problem_.weight[query]) / 2 * problem_.scale;
    const double other_shares = share_sum - share(query, column_sums_[query].others + 1);
    results[query].target_gradient += static_cast<float>(others / all * exponential(query) - other_shares);
  }
  return weight / all;
}

void Symmetric::add_gradients(int64_t chunk, RowResult* results) {
  if (chunks_ > 1) load(chunk);
  products_.add_gradients(results + products_.first_row(), [&](const Segment& segment) {
    if (!keeps(chunk)) {
      return products_.score(products_.all_panels(), segment, [&](const ScoredBlock& block) {
        products_.mask(block, target_score_.data() + products_.first_row());
        fill_block(block);
      });
    }
    const int64_t blocks = ceil_div(segment.count, plan_.block_columns);
    on_threads(blocks, 40.0 * segment.count * products_.count(), [&](const auto& next) {
      for (int64_t block = next(); block >= 0; block = next()) {
        const int64_t offset = block * plan_.block_columns, first = segment.first + offset;
        const Segment columns{first, std::min(plan_.block_columns, segment.count - offset)};
        for (int64_t panel = 0; panel < products_.panels(); ++panel) {
          fill_block({0, false, panel, columns, offset, kept(chunk, panel, first)});
        }
      }
    });
  });
}

void Symmetric::fill_block(const ScoredBlock& block) {
  const int64_t row = products_.first_row() + block.panel * kPanel, column = block.columns.first;
  kernels_.combine_directions({block.scores, block.columns.count, log2_scale_, rows_.reference.data() + row,
                               rows_.factor.data() + row, rows_.share.data() + row, columns_.reference.data() + column,
                               columns_.factor.data() + column, columns_.share.data() + column,
                               products_.weights(block.panel) + block.offset / kernels_.depth * kPanel});
}

}  // namespace fastdense::cpu
