#!/bin/sh
# import_interactions on tables as people have them: what it reads, and what it refuses because it
# would be misread. A refused import changes nothing of the data that were there.
#   sh tests/test_import.sh FOLDER_OF_THE_BINARIES
set -u
. "$(dirname "$0")/check.sh"

# import TABLE OPTION...: into the folder `data`.
import() {
  input=$1
  shift
  "$bin/import_interactions" --input "$input" --output data "$@"
}
from_stdin() {
  input=$1
  shift
  import - "$@" <"$input"
}
through_pipe() {  # by a name, as a process substitution has one
  input=$1
  shift
  cat "$input" | import /dev/stdin "$@"
}
# history ENTRY...: the one that the user u got, as item:time.
history() {
  sed -n 's/^{"user": "u", "entries": \[{"id": \(.*\)}\]}$/\1/p' data/histories.jsonl |
    sed 's/}, {"id": / /g; s/, "at": /:/g; s/"//g' >out
  [ "$(cat out)" = "$*" ] && ok || bad "history: expected $*"
}
holds() { grep -qF -- "$2" "data/$1.jsonl" && ok || { cp "data/$1.jsonl" out; bad "$1 lacks $2"; }; }

# ---- lines of pairs, `::`, CSV ----------------------------------------------------------------
printf '1 5\n1 6\n2 5\n' >pairs.txt
expect 0 "2 users, 2 items (0 with a title), 3 interactions" import pairs.txt
holds histories '{"user": "1", "entries": [{"id": 5, "at": null}, {"id": 6, "at": null}]}'
printf '1::10::5::300\n1::11::3::100\n2::10::4::50\n' >ratings.dat
printf '10::L\303\251on (1994)::Crime|Drama\n11::Heat::Crime\n' >movies.dat
expect 0 "written to data, in place of what stood there" import ratings.dat --items movies.dat
expect 0 "2 users, 2 items (2 with a title)" import ratings.dat --items movies.dat
grep -q 'columns: user 1, item 2, time 4' out && ok || bad "the columns are named"
holds histories '{"id": 11, "at": 100}, {"id": 10, "at": 300}'
holds items '{"id": 10, "title": "Léon (1994)", "genres": ["Crime", "Drama"], "popularity": 2}'
printf '10::L\351on (1994)::Crime\n' >movies.dat
expect 0 "read as Latin-1" import ratings.dat --items movies.dat
holds items 'Léon (1994)'
printf 'rating,item,user,note\n5,"a ""b"", c",x,\n4,d,x,"1,2"\n3, d ,y,\n' >table.csv
expect 0 "2 users, 2 items" import table.csv
holds items '{"id": "a \"b\", c", "popularity": 1}'
expect 0 "1 interactions" import table.csv --min-rating 5
expect 0 "columns: user user, item item, rating rating" import table.csv --min-rating 4
printf '1 5\n1 6\n1 7\n2 5\n2 6\n3 7\n3 8\n' >pairs.txt
expect 0 "2 users, 2 items (0 with a title), 4 interactions" import pairs.txt --min-user 2 --min-item 2
expect 0 "3 users, 4 items (0 with a title), 7 interactions" import pairs.txt --min-user 0 --min-item 0
cp -r data before

# ---- usage, and files that are none -------------------------------------------------------------
expect 2 "--min-rating nan" import table.csv --min-rating nan
expect 2 "--min-rating inf" import table.csv --min-rating inf
expect 2 "--item-map needs --items" import table.csv --item-map movies.dat
expect 2 "only one table can come from the standard input" import - --items -
expect 2 "exclude each other" import table.csv --no-time --time-column note
expect 1 "no interaction is left of 7 after the filters" import pairs.txt --min-user 9
expect 1 "absent.txt: cannot open" import absent.txt
mkdir folder
expect 1 "folder: not a regular file" import folder
: >empty.txt
expect 1 "empty.txt:1: empty" import empty.txt
expect 1 "standard input:1: empty" from_stdin empty.txt

# ---- rows that are not of the length of the header ----------------------------------------------
printf 'user_id,item_id,timestamp\nu,a\nu,b,2\nu,c,1\n' >first.csv
expect 1 'first.csv:2: expected 3 fields as in the header, found 2' import first.csv
printf 'user_id,item_id,note\nu,a,x\nu,b\n' >shorter.csv
expect 1 'shorter.csv:3: expected 3 fields as in the header, found 2' import shorter.csv
printf 'item_name,user_id,item_id\nHeat,u,a\nMonsters, Inc.,u,b\n' >comma.csv
expect 1 'comma.csv:3: expected 3 fields as in the header, found 4' import comma.csv
printf 'user_id\titem_id\n1\tu\ta\n2\tu\tb\n' >row_names.tsv
expect 1 'row_names.tsv:2: expected 2 fields as in the header, found 3' import row_names.tsv
printf 'u::a::5::1\nu::b::5\n' >r.dat
expect 1 'r.dat:2: expected 4 fields as in the first line, found 3' import r.dat
printf 'u a\nu b c\n' >pairs
expect 1 'pairs:2: expected 2 fields as in the first line, found 3' import pairs
printf 'u\n' >one.txt
expect 1 "one.txt:1: no column of item ids found" import one.txt
printf 'id,title,genres\nb,Monsters, Inc.,Comedy\n' >items.csv
expect 1 'items.csv:2: expected 3 fields as in the header, found 4' import table.csv --items items.csv

# ---- headers ------------------------------------------------------------------------------------
printf 'user_id,item_id,item_id\nu,a,b\n' >twice.csv
expect 1 'twice.csv:1: columns 2 and 3 are both called "item_id"' import twice.csv
printf 'user_id,item_id,note,Note\nu,a,b,c\n' >twice.csv
expect 1 'twice.csv:1: columns 3 and 4 are both called "Note"' import twice.csv
printf 'user_id:token\titem_id:token\titem_id:float\nu\ta\t1\n' >twice.inter
expect 1 'twice.inter:1: columns 2 and 3 are both called "item_id"' import twice.inter
printf 'user_id,item_id,,\nu,a,,\n' >unnamed.csv
expect 0 "1 interactions" import unnamed.csv
expect 1 'table.csv:1: no column is called "when"' import table.csv --time-column when
printf 'user_id item_id\nu a\nu b\n' >pairs.txt
expect 0 "1 users, 2 items" import pairs.txt
printf 'user_id::movie_id::at\nu::a::2\nu::b::1\n' >colons.dat
expect 0 "columns: user user_id, item movie_id, time at" import colons.dat
history b:1 a:2
printf 'user_id song\nu a\n' >song.txt
expect 1 'song.txt:1: no column of item ids found' import song.txt
expect 0 "columns: user user_id, item song" import song.txt --item-column song
printf '196\t242\t3\t881250949\n186\t302\t3\t891717742\n' >u.data
expect 1 'u.data:1: the first line is no header, it looks like data: give --no-header' import u.data
expect 0 "2 interactions" import u.data --no-header
printf 'A1YJ,B004,5.0,1400000000\nA2KK,B004,4.0,1400000001\n' >amazon.csv
expect 1 '--no-header' import amazon.csv
expect 0 "2 interactions" import amazon.csv --no-header
printf 'A1YJ,B004\nA2KK,B004\n' >names.csv
expect 1 'or give --no-header if this line is data' import names.csv
expect 1 'pairs.txt:1: --no-header is given, but this line names the columns' \
  import pairs.txt --no-header
expect 0 "columns: user 2, item 1, time 4" import amazon.csv --no-header --user-column 2 \
  --item-column 1
expect 1 '--item-column is "5", expected the number of a column, 1 ... 4' import amazon.csv \
  --no-header --item-column 5
expect 1 'cannot be for both user ids and item ids' import amazon.csv --no-header --user-column 1 \
  --item-column 1
printf 'u\t2009-05-04T23:08:57Z\tx\tBowie\ty\t"Heroes"\nu\t2009-05-04T13:54:10Z\tx\tBowie\tz\tLow\n' \
  >lastfm.tsv
expect 0 "2 interactions" import lastfm.tsv --no-header --item-column 6 --time-column 2
history 'Low:1241445250' '\Heroes\:1241478537'
printf '10::Heat::Crime\n' >movies.dat
printf 'genres,movie_id,title\nWar,B004,Alien\n' >items.csv  # --no-header is about --input
expect 0 "1 items (1 with a title)" import amazon.csv --no-header --items items.csv
holds items '"title": "Alien", "genres": ["War"]'

# shape HEADER ROW COLUMNS: tables that people publish
shape() {
  printf "$1\n$2\n" >shape
  expect 0 "columns: $3" import shape --min-rating 0
}
shape userId,movieId,rating,timestamp 1,2,3.5,1256677221 \
  "user userId, item movieId, rating rating, time timestamp"
shape user_id,book_id,is_read,rating,is_reviewed 0,948,1,5,0 \
  "user user_id, item book_id, rating rating"
shape app_id,helpful,date,is_recommended,hours,user_id,rating 975370,0,2022-12-12,true,36.3,5,1 \
  "user user_id, item app_id, rating rating, time date"
shape user_id,parent_asin,rating,timestamp AFKZ,B00YQ6X8EO,5.0,1588687728923 \
  "user user_id, item parent_asin, rating rating, time timestamp"
shape 'userID\tartistID\tscore' '2\t51\t13883' "user userID, item artistID, rating score"
shape user_id:token,item_id:token,rating:float,timestamp:float 196,242,3,881250949 \
  "user user_id:token, item item_id:token, rating rating:float, time timestamp:float"

# ---- a row number is no item, and no user -------------------------------------------------------
printf ',user_id,item_id\n0,u,a\n1,u,b\n2,v,a\n' >pandas.csv
expect 0 "2 users, 2 items" import pandas.csv
printf 'id,user_id,item_id\n0,u,a\n1,u,b\n2,v,a\n' >id.csv
expect 0 "2 users, 2 items" import id.csv
printf 'index,user,id\n0,u,a\n1,u,b\n2,v,a\n' >index.csv
expect 0 "columns: user user, item id" import index.csv
printf 'Unnamed: 0,user,id\n0,u,a\n1,u,b\n2,v,a\n' >index.csv
expect 0 "columns: user user, item id" import index.csv
printf 'id,user_id,anime\n0,u,a\n1,u,b\n2,v,a\n' >anime.csv
expect 1 'anime.csv:1: is id the item, or a number of the row and anime the item?' import anime.csv
expect 0 "2 users, 2 items" import anime.csv --item-column anime
printf 'id,user_id,rating\n7,u,1\n8,u,3\n9,v,4\n' >ids.csv
expect 1 'ids.csv:1: column id counts the rows' import ids.csv
expect 0 "3 items" import ids.csv --item-column id
printf '0\tu\ta\n1\tu\tb\n2\tv\ta\n' >rows.tsv
expect 1 'rows.tsv:1: column 1 counts the rows' import rows.tsv --no-header
expect 0 "2 users, 2 items" import rows.tsv --no-header --user-column 2 --item-column 3

# ---- ratings ------------------------------------------------------------------------------------
printf 'user_id,item_id,rating\nu,a,5\nu,b,\n' >r.csv
expect 1 'r.csv:3: the rating is "", expected a number' import r.csv --min-rating 3
printf 'user_id,item_id\nu,a\n' >no.csv
expect 1 'no column of ratings found' import no.csv --min-rating 3
printf 'u::a\n' >no.dat
expect 1 'no.dat:1: no column of ratings found' import no.dat --min-rating 3
printf 'user_id,item_id,rating\nu,a,5\nu,b\n' >r.csv
expect 1 'r.csv:3: expected 3 fields' import r.csv --min-rating 3

# ---- items --------------------------------------------------------------------------------------
printf 'id,title\nd,One\ne,Two\nd,Three\n' >items.csv
expect 1 'items.csv:4: item "d" stands on line 2 too' import table.csv --items items.csv
printf 'id,title\n,One\n' >items.csv
expect 1 'items.csv:2: the item id is empty' import table.csv --items items.csv
printf '7,One\n8,Two\n' >items.csv
expect 1 'items.csv:1: the first line is no header' import table.csv --items items.csv
printf 'id,title\n7,One\n' >items.csv
printf 'd 7\n' >map
expect 0 "2 items (1 with a title)" import table.csv --items items.csv --item-map map
printf 'd 7\nd 8\n' >map
expect 1 'map:2: item "d" stands twice, first as "7"' import table.csv --items items.csv --item-map map
printf 'd\n' >map
expect 1 'map:1: expected two ids' import table.csv --items items.csv --item-map map
printf 'item_id:token\tmovie_title:token_seq\tclass:token_seq\nd\tThe Item\tWar Drama\n' >x.item
expect 0 "1 with a title" import table.csv --items x.item
holds items '{"id": "d", "title": "The Item", "genres": ["War", "Drama"]'

# ---- line breaks: in quotes (RFC 4180), of Windows, of old Macs ---------------------------------
printf 'item,user,at,note\na,u,3,"two\nlines"\n"b\nb",u,2,"three\r\n\n""lines"""\nc,u,1,\n' >rfc.csv
expect 0 "3 interactions" import rfc.csv
history c:1 'b\u000ab:2' a:3
printf 'd,u,soon,\n' | cat rfc.csv - >lines.csv
expect 1 'lines.csv:9: the time is "soon"' import lines.csv
printf 'item,user\n"a,u\n' >open.csv
expect 1 'open.csv:2: a quote is opened and never closed' import open.csv
printf 'item,user\n"a"b,u\n' >after.csv
expect 1 'after.csv:2: text after a closing quote' import after.csv
printf 'item,user\na, "u"\n' >before.csv
expect 1 'before.csv:2: a blank before an opening quote' import before.csv
printf '\357\273\277"user_id","item_id"\r\n"u","a"\r\n\r\nu,"b"\r\n' >windows.csv
expect 0 "1 users, 2 items (0 with a title), 2 interactions" import windows.csv
printf 'u a\ru b\r' >mac.txt
expect 1 'mac.txt:1: a carriage return that does not end the line' import mac.txt
printf '"User-ID";"ISBN";"Book-Rating"\n"u";"034545104X";"0"\n' >books.csv
expect 0 "columns: user User-ID, item ISBN, rating Book-Rating" import books.csv --min-rating 0

# ---- times --------------------------------------------------------------------------------------
# at_times TIME...: a table in which u has the items a, b, c ... at these times
at_times() {
  echo 'user_id,item_id,timestamp'
  for item in a b c d e f g h; do
    [ $# -gt 0 ] || break
    echo "u,$item,\"$1\""
    shift
  done
}
at_times 0.9 0.1 0.5 >t.csv
expect 0 "sorted by time: Unix seconds, 1970-01-01 to 1970-01-01" import t.csv
history b:0 c:0 a:0
at_times 1365029107.25 -0.5 1365029107.125 1.3650291e9 -2 >t.csv
expect 0 "" import t.csv
history e:-2 b:-1 d:1365029100 c:1365029107 a:1365029107
at_times 0.0000000000000002 0.0000000000000001 1 >t.csv
expect 0 "" import t.csv
history b:0 a:0 c:1
at_times 1700000000500 1700000000499 0 1699999999999 >t.csv
expect 0 "sorted by time: Unix milliseconds, 1970-01-01 to 2023-11-14" import t.csv
history c:0 d:1699999999 b:1700000000 a:1700000000
at_times 1700000000000001 1700000000000000 >t.csv
expect 0 "Unix microseconds" import t.csv
history b:1700000000 a:1700000000
at_times 1700000000000000001 1700000000000000000 >t.csv
expect 0 "Unix nanoseconds" import t.csv
history b:1700000000 a:1700000000
at_times 1700000000 1700000000000 >t.csv
expect 1 't.csv:3: the time is "1700000000000", as Unix milliseconds, but line 2 has Unix seconds' import t.csv
at_times 2024-05-31 '2024-05-30 12:30' 2024-05-31T00:00:00Z 2024-05-31T02:00:00.5+02:30 \
  '2024-05-31 00:00:00.25' 2024-05-30T19:00:01-0500 2024-02-29T23:59:59,75Z '1969-12-31 23:59:59.5 UTC' \
  >t.csv
expect 0 "sorted by time: dates, 1969-12-31 to 2024-05-31" import t.csv
history h:-1 g:1709251199 b:1717072200 d:1717111800 a:1717113600 c:1717113600 e:1717113600 f:1717113601
for time in soon 2024-02-30 2024-13-01 '2024-05-31 24:00' '2024-05-31T12' '31/05/2024' '' 1e19 nan 0x10 \
  99999999999999999999 2024-05-31T12:00:00+25:00 1.2.3; do
  at_times 0 "$time" >t.csv
  expect 1 "t.csv:3: the time is \"$time\", expected Unix time or ISO 8601" import t.csv
done
at_times 2024-05-31 1700000000 >t.csv
expect 1 'as Unix seconds, but line 2 has dates' import t.csv
for name in date created_at Datetime unixReviewTime; do
  at_times 2024-05-31 2024-05-30 | sed "s/timestamp/$name/" >t.csv
  expect 0 "time $name" import t.csv
  history b:1717027200 a:1717113600
done
at_times tomorrow today >t.csv
expect 0 "no times: histories keep the order of the lines" import t.csv --no-time
history a:null b:null

# ---- what is no text ----------------------------------------------------------------------------
printf 'user_id,item_id\nu,a\n' >plain.csv
gzip -c plain.csv >x.csv
expect 1 'this is a gzip file, not a table: unpack it first (gzip -dc)' import x.csv
printf 'PK\003\004rest' >x
expect 1 'this is a zip archive, not a table: unpack it first (unzip -p)' import x
printf '\3757zXZ\000rest' >x
expect 1 'this is an xz file, not a table: unpack it first (xz -dc)' import x
printf '\050\265\057\375rest' >x
expect 1 'this is a zstd file, not a table: unpack it first' import x
printf 'BZh91AY&SYrest' >x
expect 1 'this is a bzip2 file, not a table: unpack it first' import x
printf 'BZh9 a\nBZh9 b\n' >letters.txt
expect 0 "1 users, 2 items" import letters.txt
gzip -c plain.csv >x.gz
expect 1 'standard input: this is a gzip file' from_stdin x.gz
expect 1 'x.gz: this is a gzip file' import table.csv --items x.gz
for encoding in UTF-16LE UTF-16BE UTF-32LE UTF-32BE; do
  iconv -f UTF-8 -t $encoding plain.csv >x
  expect 1 "this is $encoding, expected UTF-8: convert it first (iconv -f $encoding -t UTF-8)" import x
  printf '\357\273\277user' | cat - plain.csv | iconv -f UTF-8 -t $encoding >x
  expect 1 "this is $encoding" import x
done
printf '\377\376\001\002' >x
expect 1 'this is UTF-16LE' import x
printf 'u a\nu b\000c\n' >x
expect 1 'x:2: a zero byte: this is not text' import x

# ---- the standard input and pipes ---------------------------------------------------------------
expect 0 "1 interactions" from_stdin plain.csv
expect 0 "1 interactions" through_pipe plain.csv
printf 'user_id,item_id\nu\n' >short.csv
expect 1 'standard input:2: expected 2 fields as in the header, found 1' from_stdin short.csv
expect 1 '/dev/stdin:2: expected 2 fields as in the header, found 1' through_pipe short.csv
awk 'BEGIN { print "user_id item_id"; for (i = 0; i < 100000; i++) print "u" i % 7, "item" i }' >long.txt
expect 0 "100,000 interactions" through_pipe long.txt
expect 0 "100,000 items, 7 users, 100,000 interactions" "$bin/audit_dataset" --data data --split last
printf 'id,title\na,From a stream\n' >items.csv
with_items() { import plain.csv --items - <items.csv; }
expect 0 "1 with a title" with_items

# ---- a chain: each round of a filter would drop one line of 600,000 -----------------------------
awk 'BEGIN { for (i = 0; i < 300000; i++) print "u" i, "i" i "\nu" i, "i" i + 1 }' >chain.txt
expect 1 "no interaction is left of 600000 after the filters" import chain.txt --min-user 2 --min-item 2
printf 'u0 i0\nu1 i0\n' | cat chain.txt - >tail.txt
expect 0 "600,002 interactions" import tail.txt --min-user 2 --min-item 1
expect 1 "no interaction is left of 600000 after the filters" import chain.txt --min-user 3
awk 'BEGIN { for (i = 0; i < 50; i++) print "u" i, "i" i "\nu" i, "i" (i + 1) % 50; print "u0 lone\nu lone" }' \
  >ring.txt
expect 0 "50 users, 50 items (0 with a title), 100 interactions" import ring.txt --min-user 2 --min-item 2

# ---- nothing is lost ----------------------------------------------------------------------------
rm -rf data && cp -r before data
printf 'id,title\nd,One\nd,Two\n' >items.csv
expect 1 "stands on line" import plain.csv --items items.csv
expect 1 "absent.csv: cannot open" import plain.csv --items absent.csv
expect 1 "absent: cannot open" import plain.csv --items plain.csv --item-map absent
diff -r before data >out && ok || bad "a refused import changed the output"
"$bin/import_interactions" --input absent.csv --output never 2>/dev/null
[ -e never ] && bad "a refused import made its folder" || ok

echo "$passed passed, $failed failed"
[ $failed = 0 ]
