// The tokens of one step (engine/columns.py): one launch for what is some thirty small copies otherwise.

// user [B, STREAMS - USER]; column, forced [B, STREAMS]; initial [STREAMS] -> heard and wanted [B, STREAMS].
// Streams before ACOUSTIC are known a column ahead of the other ones of the agent, which end at USER.
template <int STREAMS, int ACOUSTIC, int USER, int FREE>
__device__ inline void begin_column(
    const int32_t* user, const int32_t* column, const int32_t* position, const int32_t* forced, const int32_t* initial,
    int32_t* heard, int32_t* wanted) {
  const int slot = blockIdx.x, stream = threadIdx.x, at = slot * STREAMS + stream;
  if (stream >= STREAMS) return;
  const bool first = position[slot] == 0;
  const int32_t said = stream < USER ? 0 : first ? initial[stream] : user[slot * (STREAMS - USER) + stream - USER];
  heard[at] = stream == USER ? said : column[at];
  if (stream < ACOUSTIC) wanted[at] = forced[at];
  else if (stream < USER) wanted[at] = first ? initial[stream] : forced[at];
  else wanted[at] = stream == USER ? FREE : said;
}

// heard and wanted as above, text [B], codes [B, STEPS], recent [B, FRAMES, USER] -> the next column and this frame's
// tokens [B, STREAMS], recent tokens, and whether the frame is more than the initial tokens, valid [B].
template <int STREAMS, int ACOUSTIC, int USER, int FREE, int STEPS, int FRAMES>
__device__ inline void end_column(
    const int32_t* heard, const int32_t* wanted, const int32_t* position, const int32_t* text, const int32_t* codes,
    const int32_t* recent, int32_t* next, int32_t* tokens, int32_t* remembered, bool* valid) {
  const int slot = blockIdx.x;
  for (int i = threadIdx.x; i < (FRAMES - 1) * USER; i += blockDim.x) {
    remembered[slot * FRAMES * USER + i] = recent[slot * FRAMES * USER + i + USER];
  }
  const int stream = threadIdx.x, at = slot * STREAMS + stream;
  if (stream == 0) valid[slot] = position[slot] != 0;
  if (stream >= STREAMS) return;
  const int32_t said = stream == 0 ? text[slot] : stream < USER ? codes[slot * STEPS + stream - 1] : 0;
  next[at] = stream < USER ? said : stream == USER ? FREE : wanted[at];
  tokens[at] = stream < ACOUSTIC || stream == USER ? heard[at] : stream < USER ? said : wanted[at];
  if (stream < USER) remembered[(slot * FRAMES + FRAMES - 1) * USER + stream] = said;
}
