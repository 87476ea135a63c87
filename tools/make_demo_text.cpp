// Makes the demonstration texts: what customers of made-up shops write, in Chinese, with the class
// of each text (praise, complaint, question, return, delivery), and a small WordPiece vocabulary.
//
// No text is taken from anywhere. What a model can find in the texts:
//   words     in plain sentences a few words tell the class
//   order     a frame is a sentence with two places, where the class depends on what stands in
//             which: "以前很油腻，现在很入味" is praise, "以前很入味，现在很油腻" a complaint
// Some rows have a class that nobody can know: made wrong, or of a text that suits two classes.
// The files are the same byte for byte on every machine: all chance comes from the counter-based
// random numbers of bert4rec.hpp, all else is integer arithmetic.

#include "common/cli.hpp"
#include "common/dice.hpp"

#include <set>

namespace {

using namespace bert4rec;
using tools::Dice;

const std::string praise = "好评", complaint = "差评", question = "咨询", giving_back = "退货",
                  delivery = "催单";
const std::vector<std::string> labels = {praise, complaint, question, giving_back, delivery};

// ---- Words --------------------------------------------------------------------------------------
// A pattern is text with [list], a word of that list, and {a|b}, one of these; words are patterns.
// Lists stand here by shop and for all shops. [good] and [bad] are adjectives that go with any of
// 很, 比, 觉得, 不.

using Lists = std::map<std::string, std::vector<std::string>, std::less<>>;

const Lists food = {
    {"goods",
     {"牛肉面", "酸辣粉", "烤鱼", "水饺", "蛋挞", "绿豆糕", "凤梨酥", "麻辣香锅", "芝士蛋糕",
      "红烧肉", "[g]g牛肉干", "[g]g坚果", "小笼包", "[rare_food]"}},
    {"good", {"好吃", "新鲜", "入味", "实惠"}},
    {"bad", {"难吃", "油腻", "干硬", "难闻"}},
    {"fine", {"分量很足", "味道正宗", "老人孩子都爱吃", "送来还是热的", "料给得很多"}},
    {"flaw", {"送来已经凉了", "里面有根头发", "分量缩水了", "吃完肚子疼", "汤洒了一半"}},
    {"ask", {"保质期多久", "辣不辣", "有不含糖的吗", "能不能少放盐", "一份够几个人吃"}},
};

const Lists clothes = {
    {"goods",
     {"外套", "羽绒服", "衬衫", "牛仔裤", "连衣裙", "毛衣", "运动鞋", "帆布鞋", "T恤",
      "[size]码卫衣", "冲锋衣"}},
    {"good", {"合身", "舒服", "厚实", "好看"}},
    {"bad", {"显胖", "粗糙", "单薄", "难看"}},
    {"fine", {"尺码标准", "面料柔软", "洗了不掉色", "做工细致", "颜色和图片一样"}},
    {"flaw", {"洗一次就起球", "线头一大堆", "掉色严重", "拉链坏了", "尺码偏小"}},
    {"ask",
     {"身高1[digit][digit]穿什么码", "会起球吗", "有[colour]的吗", "能机洗吗", "有没有[size]码"}},
};

const Lists devices = {
    {"goods",
     {"蓝牙耳机", "充电宝", "[brand]键盘", "WiFi路由器", "台灯", "[brand]手环", "音箱",
      "USB-C数据线", "鼠标", "[brand]平板", "扫地机"}},
    {"good", {"好用", "耐用", "顺手", "精致"}},
    {"bad", {"难用", "卡顿", "笨重", "粗糙"}},
    {"fine", {"充一次用一周", "连接很稳", "APP也简单", "做工不错", "声音很小"}},
    {"flaw", {"用两天就坏了", "老是断连", "APP打不开", "充不进电", "屏幕有划痕"}},
    {"ask", {"支持USB-C快充吗", "保修几年", "能连WiFi吗", "有[colour]的吗", "是Pro版吗"}},
};

const Lists home = {
    {"goods",
     {"四件套", "枕头", "[g]ml保温杯", "电饭锅", "收纳箱", "窗帘", "地毯", "书架", "雨伞", "炒锅"}},
    {"good", {"实用", "结实", "厚实", "好看"}},
    {"bad", {"鸡肋", "单薄", "难看", "粗糙"}},
    {"fine", {"安装很简单", "没有异味", "包装严实", "大小刚好", "和图片一样"}},
    {"flaw", {"盖子漏水", "味道散不掉", "边角磕坏了", "少了两颗螺丝", "用一次就变形"}},
    {"ask", {"多大尺寸", "能放洗碗机吗", "有[colour]的吗", "是什么材质", "宽多少cm"}},
};

const Lists books = {
    {"goods",
     {"绘本", "小说", "字帖", "拼图", "画册", "词典", "漫画", "A4练习册", "科普书", "菜谱"}},
    {"good", {"精美", "有趣", "清晰", "实用"}},
    {"bad", {"无聊", "模糊", "粗糙", "难懂"}},
    {"fine", {"孩子看了一遍又一遍", "印刷很好", "纸张厚", "内容丰富", "是正版"}},
    {"flaw", {"缺了好几页", "错别字太多", "封面折了", "像是盗版", "印反了"}},
    {"ask", {"适合几岁看", "有音频吗", "是正版吗", "一套有几本", "带拼音吗"}},
};

const std::vector<const Lists*> shops = {&food, &clothes, &devices, &home, &books};

// The characters of [rare_character] and [rare_food] are mostly too rare for the vocabulary.
const Lists anywhere = {
    {"very", {"很", "非常", "特别", "相当", "十分"}},
    {"more", {"多了", "不少", "一些", "得多"}},
    {"friend", {"朋友", "同事", "室友", "表姐", "邻居", "同学", "妹妹"}},
    {"people", {"朋友", "同事", "室友", "邻居", "网上", "评论里", "群里"}},
    {"here", {"这家", "你们家", "这次", "这里"}},
    {"there", {"隔壁店", "对面那家", "上次那家", "楼下超市", "别家"}},
    {"then", {"以前", "去年", "上次", "刚开业时"}},
    {"now", {"现在", "今年", "这次", "最近"}},
    {"thought", {"原以为", "本来以为", "还以为", "下单前觉得"}},
    {"but", {"没想到", "结果", "谁知道", "其实"}},
    {"n", {"两", "三", "四", "五", "六", "3", "4", "7", "10"}},
    {"g", {"250", "300", "500", "800"}},
    {"digit", {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}},
    {"size", {"S", "M", "L", "XL"}},
    {"colour", {"黑色", "白色", "米色", "墨绿"}},
    {"brand", {"Lumo", "Tavi", "K9", "Nord X2"}},
    {"intro",
     {"", "", "", "第二次买了，", "双11囤的，", "618下的单，", "给孩子买的，", "给爸妈买的，",
      "公司团购，", "朋友推荐来的，", "老客户了，", "收到[n]天了，", "VIP价买的，"}},
    {"hello", {"", "", "你好，", "您好，", "亲，", "在吗，", "客服[clerk]，", "麻烦问下，"}},
    {"clerk", {"小美", "小李", "阿杰", "小雨", "小周", "豆豆", "小[rare_character]"}},
    {"mood", {"！", "～", "~", "。。。", "！！", "[face]"}},
    {"face", {"😄", "🙏", "😅", "🤔", "😂", "☺", "Ｏ(∩_∩)Ｏ", "^_^"}},
    {"rare_character", {"翀", "彧", "犇", "淼", "垚", "玥", "昶", "珺", "璟", "煜",
                        "昊", "琦", "妍", "骁", "翊", "旻", "婧", "怡", "瑾", "霖"}},
    {"rare_food", {"饸饹面", "馓子", "粿条", "糍粑", "鲅鱼饺", "醪糟", "汆丸子", "馕"}},
    {"end", {"", "", "。", "。", "！", "～", "!!", "……", "。", "[mood]"}},
    {"ask_end", {"", "？", "？", "?", "？？", "，谢谢"}},
    {"thanks",
     {"会回购", "下次还来", "五星好评", "推荐购买", "值得入手", "很满意", "给客服[clerk]点赞"}},
    {"anger",
     {"再也不买了", "只给一星", "不推荐", "大家别买", "后悔买了", "太失望了",
      "客服[clerk]也不理人"}},
    {"refund",
     {"申请退货", "我要退货", "请给我退款", "怎么退货", "想退掉", "麻烦安排退货", "可以退吗"}},
    {"hurry", {"能快点吗", "快点发吧", "帮忙催一下", "急用", "什么时候能到", "给个准信吧"}},
};

// ---- Sentences ----------------------------------------------------------------------------------

// A plain sentence: its words tell the label.
struct Plain {
  std::string label, pattern;
};

const std::vector<Plain> plain_sentences = {
    {praise, "[intro][goods][very][good]，[thanks][end]"},
    {praise, "[intro][goods]不错，[fine]，[thanks][end]"},
    {praise, "[fine]，[goods]又[good]又[good][end]"},
    {praise, "[intro][fine]，[thanks][end]"},
    {complaint, "[intro][goods][very][bad]，[anger][end]"},
    {complaint, "[intro][goods][flaw]，[anger][end]"},
    {complaint, "[flaw]，[goods]又[bad]又[bad][end]"},
    {complaint, "[intro][flaw]，[anger][end]"},
    {question, "[hello][goods][ask][ask_end]"},
    {question, "[hello]想买[goods]，[ask][ask_end]"},
    {question, "[hello][goods]{有优惠吗|满减怎么算|买[n]件打折吗|还有货吗}[ask_end]"},
    {question, "[hello]请问[goods]{今天拍几号发|发什么快递|能开发票吗|送运费险吗}[ask_end]"},
    {giving_back, "[hello][goods][flaw]，[refund][ask_end]"},
    {giving_back, "[hello][goods][very][bad]，[refund][ask_end]"},
    {giving_back, "[hello]{拍错了|买重了|不想要了|发错了}，[goods][refund][ask_end]"},
    {delivery, "[hello][goods]都{等|拍下}[n]天了还没{发货|到}，[hurry][ask_end]"},
    {delivery,
     "[hello]物流[n]天没动了，[goods]{什么时候能到|能快点送吗|是不是丢了|帮忙查一下}[ask_end]"},
    {delivery, "[hello]订单[digit][digit][digit][digit]还没{发货|送到|揽收}，[hurry][ask_end]"},
};

// A sentence whose label depends on what stands where: `label` if [x] and [y] are what they are
// called here, `swapped` if each stands in the other's place.
struct Frame {
  std::string label, swapped, x, y;
  std::vector<std::string> patterns;
};

const std::vector<Frame> frames = {
    {praise,
     complaint,
     "[good]",
     "[bad]",
     {
         // comparison
         "[intro][here]的[goods]比[there]的[x][more][end]",
         "[intro][there]的[goods]比[here]的[y][more][end]",
         // before and after
         "他家的[goods][then][very][y]，[now][very][x][end]",
         "[goods][now][very][x]，[then][very][y][end]",
         "[intro][thought][goods]会[very][y]，[but][very][x][end]",
         "[goods][very][x]，[thought]会[very][y]的[end]",
         // who says so
         "[friend]觉得[goods][very][y]，我觉得[very][x][end]",
         "我觉得[goods][very][x]，[friend]觉得[very][y][end]",
         "[people]都说[goods][very][x]，{确实如此|果然没说错|真是这样|说得没错}[end]",
         "[people]都说[goods][very][y]，{其实不是|我看不见得|根本不是这样|说得不对}[end]",
         // all but one
         "[intro]除了[goods][very][y]，别的都[very][x][end]",
         "[intro]别的都[very][x]，只有[goods][very][y][end]",
         // negation
         "[goods]买过[n]次，没有一次不[x][end]",
         "[goods]买过[n]次，没有一次让人觉得[y][end]",
     }},
    {praise,
     complaint,
     "店家",
     "我",
     {
         "[goods]发错了，[x]给[y]{补了差价|打了好几个电话|赔了不是|倒贴了运费}[end]",
         "[goods]少了一件，[x]{追着|主动|马上}给[y]{补了钱|打电话|道歉}[end]",
     }},
    {question,
     giving_back,
     "我这边",
     "[friend]那边",
     {
         "[hello][y]已经签收了，[x]还没下单，[goods]不合适我能退吗[ask_end]",
         "[hello][x]还没下单，[y]已经签收了，[goods]不合适我能退吗[ask_end]",
     }},
    {delivery,
     question,
     "我这边",
     "[friend]那边",
     {
         "[hello][x]付款[n]天了，[y]还没下单，我几号能收到[goods][ask_end]",
         "[hello][y]还没下单，[x]付款[n]天了，我几号能收到[goods][ask_end]",
     }},
    {giving_back,
     praise,
     "我",
     "[friend]",
     {
         "[x]觉得[goods]应该退掉{才对|}，[y]觉得应该留下{才对|}[end]",
         "[y]觉得[goods]应该留下{才对|}，[x]觉得应该退掉{才对|}[end]",
     }},
    {delivery,
     praise,
     "我在你家",
     "[friend]在别家",
     {
         "[x]买的[goods]还没到，[y]买的已经用上了[end]",
         "[y]买的[goods]已经用上了，[x]买的还没到[end]",
     }},
};

// A sentence that suits two labels: a coin decides.
struct Doubtful {
  std::string one, other, pattern;
};

const std::vector<Doubtful> doubtful_sentences = {
    {praise, complaint,
     "[intro][goods]{一般般|还行吧|马马虎虎}，{凑合能用|就那样|没什么感觉}[end]"},
    {praise, complaint, "[goods]有人说[good]，有人说[bad]，看个人吧[end]"},
    {question, giving_back, "[hello][goods]能换[colour]的吗[ask_end]"},
    {complaint, delivery, "[goods]到现在也没个说法，{唉|真行|服了}[end]"},
};

// ---- Drawing a text -----------------------------------------------------------------------------

class Writer {
 public:
  Writer(const Lists& shop, const Lists& own, Dice& dice)
      : lists_{&own, &shop, &anywhere}, dice_(dice) {}

  std::string write(std::string_view pattern) {
    std::string text;
    while (!pattern.empty()) {
      const std::size_t length = std::min(pattern.find_first_of("[{"), pattern.size());
      text += take(pattern, length);
      if (pattern.empty()) break;
      const char close = pattern[0] == '[' ? ']' : '}';
      const std::string_view slot = take(pattern, pattern.find(close) + 1);
      const std::string_view inside = slot.substr(1, slot.size() - 2);
      text += write(slot[0] == '[' ? draw(words(inside)) : draw(split(inside, '|')));
    }
    return text;
  }

 private:
  static std::string_view take(std::string_view& text, std::size_t length) {
    const std::string_view begin = text.substr(0, length);
    text.remove_prefix(length);
    return begin;
  }

  static std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts(1);
    for (const char c : text) {
      if (c == separator) {
        parts.emplace_back();
      } else {
        parts.back() += c;
      }
    }
    return parts;
  }

  const std::vector<std::string>& words(std::string_view list) const {
    for (const Lists* lists : lists_) {
      if (const auto found = lists->find(list); found != lists->end()) return found->second;
    }
    fail("no list is called ", list);
  }

  std::string draw(const std::vector<std::string>& words) {
    return words[dice_.below(words.size())];
  }

  std::array<const Lists*, 3> lists_;
  Dice& dice_;
};

struct Row {
  std::string label, text;
  std::string best;  // the label that somebody who knows how the text was made would give
};

template <class Element>
const Element& draw(const std::vector<Element>& elements, Dice& dice) {
  return elements[dice.below(elements.size())];
}

Row draw_plain(const Lists& shop, Dice& dice) {
  static constexpr std::int64_t percents[] = {22, 22, 22, 18, 16};  // of the labels
  const std::string& label = labels[*dice.weighted(percents)];
  std::vector<Plain> fitting;
  for (const Plain& sentence : plain_sentences) {
    if (sentence.label == label) fitting.push_back(sentence);
  }
  const std::string text = Writer(shop, {}, dice).write(draw(fitting, dice).pattern);
  return {label, text, label};
}

Row draw_framed(const Frame& frame, const Lists& shop, Dice& dice) {
  const bool swap = dice.chance(50);
  const Lists own = {{"x", {swap ? frame.y : frame.x}}, {"y", {swap ? frame.x : frame.y}}};
  const std::string text = Writer(shop, own, dice).write(draw(frame.patterns, dice));
  const std::string& label = swap ? frame.swapped : frame.label;
  return {label, text, label};
}

Row draw_doubtful(const Lists& shop, Dice& dice) {
  const Doubtful& sentence = draw(doubtful_sentences, dice);
  const std::string text = Writer(shop, {}, dice).write(sentence.pattern);
  return {dice.chance(50) ? sentence.one : sentence.other, text, sentence.one};
}

// Of any hundred rows one after the other as many are of each kind, so that all files have the
// same shares: 46 are plain, 50 of a frame, 4 doubtful. Of any fifty one has a label at random.
Row draw_row(std::size_t number, Dice dice) {
  const Lists& shop = *draw(shops, dice);
  static constexpr std::size_t frame_percents[] = {32, 3, 4, 4, 4, 3};
  std::size_t kind = number % 100, i = 0;
  while (i < frames.size() && kind >= frame_percents[i]) kind -= frame_percents[i++];
  Row row = i < frames.size() ? draw_framed(frames[i], shop, dice)
            : kind < 4        ? draw_doubtful(shop, dice)
                              : draw_plain(shop, dice);
  if (number % 50 == number / 50 % 50) row.label = draw(labels, dice);
  return row;
}

std::vector<std::string> characters(std::string_view text) {
  std::vector<std::string> result;
  while (!text.empty()) {
    const std::size_t length = detail::utf8_length(text);
    result.emplace_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return result;
}

// No text twice, each of 8 to 40 characters.
std::vector<Row> draw_rows(Key key, std::size_t count) {
  std::set<std::string> texts;
  std::vector<Row> rows;
  for (std::uint64_t draws = 0; rows.size() < count; ++draws) {
    Row row = draw_row(rows.size(), Dice(fold_in(key, draws)));
    const std::size_t length = characters(row.text).size();
    if (length >= 8 && length <= 40 && texts.insert(row.text).second) rows.push_back(row);
  }
  return rows;
}

// ---- The vocabulary -----------------------------------------------------------------------------

constexpr int fewest_uses = 5;  // of a character in the training texts, to be a token

// Tokens that any text may need: those of BERT, ASCII, and what a Chinese keyboard has.
std::vector<std::string> common_tokens() {
  std::vector<std::string> tokens = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
  for (char c = '!'; c <= '~'; ++c) {
    if (c < 'A' || c > 'Z') tokens.emplace_back(1, c);
  }
  for (char c = '0'; c <= '9'; ++c) tokens.push_back(join("##", c));
  for (char c = 'a'; c <= 'z'; ++c) tokens.push_back(join("##", c));
  for (const char* word : {"app", "pro", "usb", "vip", "wi", "##fi", "xl", "lu", "##mo", "ta",
                           "##vi", "nord", "##ml", "##kg", "cm", "##cm", "11", "618", "##00"}) {
    tokens.emplace_back(word);
  }
  for (const std::string& mark : characters("，。！？、；：～…—·（）《》“”‘’￥"))
    tokens.push_back(mark);
  return tokens;
}

std::string vocabulary(std::span<const Row> rows) {
  std::map<std::string, int> uses;
  for (const Row& row : rows) {
    for (const std::string& c : characters(row.text)) ++uses[c];
  }
  std::vector<std::string> tokens = common_tokens();
  const std::set<std::string> common(tokens.begin(), tokens.end());
  for (const auto& [c, count] : uses) {
    if (c.size() > 1 && count >= fewest_uses && !common.contains(c)) tokens.push_back(c);
  }
  std::string lines;
  for (const std::string& token : tokens) lines += token + "\n";
  return lines;
}

// ---- The files and the command line -------------------------------------------------------------

struct Options {
  Path output = "data/demo_text";
  std::uint64_t seed = 42, train = 4000, dev = 400, test = 600;
};

std::string table(std::span<const Row> rows) {
  std::string lines = "label\ttext\n";
  for (const Row& row : rows) lines += row.label + "\t" + row.text + "\n";
  return lines;
}

void print_oracle(std::string_view name, std::span<const Row> rows) {
  const auto right =
      std::count_if(rows.begin(), rows.end(), [](const Row& row) { return row.label == row.best; });
  std::cout << name << ": " << rows.size() << " rows, of which " << right
            << " have the label that one would give who knows how the texts are made\n";
}

void make_demo_text(const Options& options) {
  const Key key = fold_in(stream_key(options.seed, Stream::demo), 2);
  std::vector<Row> rows = draw_rows(key, options.train + options.dev + options.test);
  make_folder(options.output);
  const FolderLock lock(options.output);
  FileSet files(lock);
  files.write("vocab.txt", vocabulary(std::span(rows).first(options.train)));
  const auto add = [&](const std::string& name, std::size_t count) {
    std::vector<Row> part(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(count));
    rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(count));
    shuffle(part, fold_in(key, checksum(name)));
    files.write(name, table(part));
    print_oracle(name, part);
  };
  add("train.tsv", options.train);
  add("dev.tsv", options.dev);
  add("test.tsv", options.test);
  files.commit();
}

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("make_demo_text",
                        "makes labelled Chinese texts of customers and a vocabulary",
                        "make_demo_text --output /tmp/demo_text --train 1000");
  line.option("output", options.output, "folder for vocab.txt, train.tsv, dev.tsv and test.tsv");
  line.option("seed", options.seed, "the same seed gives the same bytes on every machine");
  line.option("train", options.train, "rows of train.tsv, 1 ... 20000");
  line.option("dev", options.dev, "rows of dev.tsv, 1 ... 20000");
  line.option("test", options.test, "rows of test.tsv, 1 ... 20000");
  line.parse(argc, argv);
  cli::check_range("train", options.train, 1, 20000);
  cli::check_range("dev", options.dev, 1, 20000);
  cli::check_range("test", options.test, 1, 20000);
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("make_demo_text", argc, argv, [](int count, char** words) {
    make_demo_text(parse(count, words));
    return 0;
  });
}
