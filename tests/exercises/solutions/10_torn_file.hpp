namespace mine {

// AtomicFile does this, and flushes file and folder, so that a power cut does no harm either.
void save(const Path& path, const NextPiece& next_piece) {
  const Path temporary = path_from(path_text(path) + ".new");  // beside it: on the same disk
  std::ofstream file(temporary, std::ios::binary);
  for (std::string_view piece = next_piece(); !piece.empty(); piece = next_piece()) file << piece;
  file.close();
  if (file.fail()) {
    remove_path(temporary);
    fail(path, ": cannot write");
  }
  std::filesystem::rename(temporary, path);  // one step: nobody sees a half of it
}

}  // namespace mine
