#!/bin/sh
# README.zh-TW.md says what README.md says: the same commands, figures and places to go to, in the
# same order; and every file or section that a README of ours sends people to is there.
#   sh tests/test_readme.sh
set -u
set -- "$(dirname "$0")"
. "$1/check.sh"

# same WHAT FILTER: what the filter takes from both is equal, and is something
same() {
  for language in "" .zh-TW; do
    sh -c "$2" <"$here/README$language.md" >"found$language"
  done
  [ -s found ] && diff found found.zh-TW >out && ok || bad "README.zh-TW.md has other $1"
}
code="sed -n '/^\`\`\`/,/^\`\`\`/p'"
prose="sed '/^\`\`\`/,/^\`\`\`/d'"
same "commands" "$code | sed 's/  *# .*//'"
same "code in the text" "$prose | tr '\\n' ' ' | grep -o '\`[^\`]*\`' | sort"
same "figures" "$prose | LC_ALL=C grep -oE '[0-9][0-9.,]*[0-9](e-[0-9]+)?' | sort"
same "figures in bold" "$prose | LC_ALL=C grep -oE '\*\*[0-9.]+\*\* ± [0-9.]+'"
same "places to go to" "$prose | grep -oE '\]\([^)#]+(#[^)]*)?\)' | grep -v README.zh-TW | grep -v '(README.md)' | sort"
same "rows of tables" "$prose | grep -c '^|'"
same "sections" "grep -c '^## '"

# anchors FILE: the sections of a page, as GitHub names them.
anchors() {
  sed '/^```/,/^```/d' "$1" | sed -n 's/^##* //p' | sed 's/[^[:alnum:] _-]//g; s/ /-/g' | tr 'A-Z' 'a-z'
}
export LC_ALL=C.UTF-8
cd "$here" || exit 1
for page in $(git ls-files '*.md' 2>/dev/null || find . -name '*.md'); do
  folder=$(dirname "$page")
  for link in $(sed '/^```/,/^```/d' "$page" | grep -oE '\]\([^)]+\)' | sed 's/^](//; s/)$//'); do
    case $link in http*) continue ;; esac
    file=${link%%#*} section=
    case $link in *"#"*) section=${link#*#} ;; esac
    target=$page
    [ -z "$file" ] || target=$folder/$file
    [ -e "$target" ] && ok || bad "$page: $link leads nowhere"
    [ -z "$section" ] || [ ! -f "$target" ] || anchors "$target" | grep -qxF -- "$section" && ok ||
      bad "$page: no section $link"
  done
done

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
