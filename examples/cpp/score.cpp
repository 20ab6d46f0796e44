// Score photographs with onnxruntime, libjpeg-turbo and libexif: the rows of retina-score, from the model file alone.
// score MODEL.onnx PICTURE... prints the table; score MODEL.onnx --conformance DIR checks this program against a kit.
// Exit code 0: all done; 1: an unreadable photograph, or answers unlike the kit's; 2: failed. Not for clinical use.
#include <libexif/exif-data.h>
#include <onnxruntime_cxx_api.h>
#include <turbojpeg.h>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
using nlohmann::json; using Bytes = std::vector<unsigned char>;
struct Picture { int64_t height, width; Bytes rgb; };
[[noreturn]] static void fail(const std::string& reason) { throw std::runtime_error(reason); }
static Bytes read(const std::string& path) {
  if (std::ifstream file{path, std::ios::binary}) return {std::istreambuf_iterator<char>(file), {}};
  fail(path + ": cannot be read");
}
struct Model {  // an open model file and the contract inside it
  Ort::Env env{ORT_LOGGING_LEVEL_FATAL}; Ort::Session session; Ort::AllocatorWithDefaultOptions memory; json contract;
  explicit Model(const char* path) : session(env, path, Ort::SessionOptions()) {
    const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("retina.contract", memory);
    contract = json::parse(text ? text.get() : "{}");
    if (!contract.is_object() || contract["schema"] != 1) fail("expected a retina.contract of schema 1, found another");
    json& rules = contract["thresholds"];
    rules.emplace("referable_me", json{{"rule", "at_least"}, {"threshold", 0.5}});  // not in the oldest files
    const auto is = [&](const char* task, const std::string& rule) {
      const json told = rules.value(task, json::object()), level = told.value("threshold", json());
      return told.value("rule", json()) == rule && (rule == "argmax" || (level >= 0 && level <= 1)); };
    if (!is("dr", "argmax") || !(is("me", "argmax") || is("me", "at_least")) || !is("referable_dr", "at_least") ||
        !is("referable_me", "at_least")) fail("unknown rules: " + rules.dump());
    const std::string caution = contract.value("caution", json("")).dump(-1, ' ', true);  // or a terminal would obey it
    if (caution.size() > 2) std::cerr << "Caution: " << caution.substr(1, caution.size() - 2) << "\n";
  }
  json answer(Picture picture) {  // the network's probabilities, and what is decided
    const int64_t shape[] = {1, picture.height, picture.width, 3};
    const auto image = Ort::Value::CreateTensor(memory.GetInfo(), picture.rgb.data(), picture.rgb.size(), shape, 4);
    const char *input[] = {"image"}, *outputs[] = {"dr_probs", "me_probs"};
    const auto found = session.Run(Ort::RunOptions(), input, &image, 1, outputs, 2);
    const float *dr = found[0].GetTensorData<float>(), *me = found[1].GetTensorData<float>();
    const auto length = [&](int output) { return found[output].GetTensorTypeAndShapeInfo().GetElementCount(); };
    return decide({dr, dr + length(0)}, {me, me + length(1)});
  }
  json decide(const std::vector<float>& dr, const std::vector<float>& me) {  // what the contract's rules make of them
    const json &grades = contract["dr_grades"], &r = contract["thresholds"], &rule = r["me"], &ref = r["referable_dr"];
    if (dr.size() != grades.size() || me.size() != 2) fail("outputs: expected one for each of " + grades.dump());
    double referred = 0, refer_me = r["referable_me"]["threshold"];
    for (size_t i = 0; i < grades.size(); ++i) referred += grades[i] >= ref.value("from_grade", 2) ? dr[i] : 0;
    const bool risk = rule["rule"] == "argmax" ? me[1] > me[0] : me[1] >= rule["threshold"];
    return {{"dr_probs", dr}, {"me_probs", me}, {"decisions", {
        {"dr_grade", grades[std::max_element(dr.begin(), dr.end()) - dr.begin()]}, {"me_risk", int(risk)},
        {"referable", referred >= ref["threshold"]}, {"referable_me", me[1] >= refer_me}}}};
  }
};

static Picture decode(const std::string& path, int min_side) {  // a JPEG's pixels, upright, nothing resized
  const Bytes jpeg = read(path);
  const std::shared_ptr<void> turbo(tjInitDecompress(), tjDestroy); int w = 0, h = 0, chroma = 0, colours = 0;
  const auto check = [&](int failed) { if (failed) fail(tjGetErrorStr2(turbo.get())); };
  check(tjDecompressHeader3(turbo.get(), jpeg.data(), jpeg.size(), &w, &h, &chroma, &colours));
  if (std::min(w, h) < min_side || int64_t(w) * h > 100'000'000) fail("too small or too large");
  Bytes stored(size_t(w) * h * 3);  // for a file cut short the decoder gives a warning, which is an error here
  check(tjDecompress2(turbo.get(), jpeg.data(), jpeg.size(), stored.data(), w, 0, h, TJPF_RGB, TJFLAG_STOPONWARNING));
  const std::shared_ptr<ExifData> exif(exif_data_new_from_data(jpeg.data(), jpeg.size()), exif_data_unref);
  const ExifEntry* tag = exif ? exif_content_get_entry(exif->ifd[EXIF_IFD_0], EXIF_TAG_ORIENTATION) : nullptr;
  const auto order = exif_data_get_byte_order(exif.get());
  const int turn = tag && tag->size >= 2 ? std::min<int>(exif_get_short(tag->data, order), 9) : 1;  // 9 is none, as 1
  // Bit n of each mask is set if EXIF orientation n swaps the sides; reads rows from the right; columns from below.
  const bool swap = 0x1e0 >> turn & 1, left = 0x18c >> turn & 1, up = 0x0d8 >> turn & 1;
  const int64_t column = left ? -1 : 1, row = up ? -w : w, first = (left ? w - 1 : 0) + (up ? int64_t(h - 1) * w : 0);
  Picture upright{swap ? w : h, swap ? h : w, Bytes(stored.size())};
  for (int64_t y = 0, to = 0; y < upright.height; ++y)
    for (int64_t x = 0; x < upright.width; ++x, to += 3)
      std::copy_n(&stored[3 * (first + (swap ? x * row + y * column : x * column + y * row))], 3, &upright.rgb[to]);
  return upright;
}
static std::ostream& cell(const std::string& text) {  // a CSV cell, quoted if necessary
  return text.find_first_of(",\"\r\n") == text.npos ? std::cout << text : std::cout << std::quoted(text, '"', '"');
}
static int score(Model& model, const std::vector<std::string>& paths) {
  std::cout << "Image name,Pred DR grade (orig),True DR grade (orig),Pred ME risk,True ME risk,";
  for (const json& grade : model.contract["dr_grades"]) std::cout << "dr_prob_" << grade << ",";
  std::cout << std::fixed << std::setprecision(6) << "me_prob,status,error\n"; bool failed = false;
  for (const auto& path : paths) try {
    const json answer = model.answer(decode(path, model.contract["input"]["min_side"])), &made = answer["decisions"];
    cell(path) << "," << made["dr_grade"] << ",," << made["me_risk"] << ",,";
    for (const double prob : answer["dr_probs"]) std::cout << prob << ",";
    std::cout << double(answer["me_probs"][1]) << ",ok,\n";
  } catch (const std::exception& err) {
    cell(path) << std::string(model.contract["dr_grades"].size() + 6, ',') << "error,";
    failed = bool(cell(err.what()) << "\n");
  }
  return failed;
}
static int conform(Model& model, const std::string& kit) {
  const json index = json::parse(read(kit + "/index.json")); double worst = 0, faults = 0;
  for (const char* part : {"pictures", "cases"}) for (const json& picture : index.at(part)) {
    const json answer = (!picture.contains("file") ? model.decide(picture["dr_probs"], picture["me_probs"]) :
      model.answer({picture["shape"][0], picture["shape"][1], read(kit + "/" + picture.value("file", ""))})).flatten();
    const json expected = picture.flatten();  // keys like /dr_probs/0; no decisions for a close call
    for (const auto& [what, found] : answer.items()) {
      const json wanted = expected.value(what, found);
      const double off = found.is_number_float() ? std::abs(double(found) - double(wanted)) : found != wanted;
      if (found.is_number_float()) worst = std::max(worst, off);
      if (off <= index["tolerance"]) continue;
      std::cout << picture["name"] << what << ": expected " << wanted << ", found " << found << "\n", ++faults;
    }
  }
  std::cout << index["pictures"].size() << " pictures, largest difference " << worst << ", " << faults << " faults\n";
  return faults > 0;
}

int main(int argc, char** argv) try {
  const bool kit = argc > 2 && argv[2] == std::string("--conformance");
  if (argc < 3 || (kit && argc != 4)) fail("usage: score MODEL.onnx PICTURE... | score MODEL.onnx --conformance DIR");
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // before onnxruntime starts: it would report to Microsoft
  Model model(argv[1]);
  return kit ? conform(model, argv[3]) : score(model, {argv + 2, argv + argc});
} catch (const std::exception& err) {
  return std::cerr << "score: " << (argc > 1 ? argv[1] : "") << ": " << err.what() << "\n", 2;
}
