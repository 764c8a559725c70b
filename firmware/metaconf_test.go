package firmware

import (
	"fmt"
	"strings"
	"testing"
)

func TestMetaConf(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{``, `[]`},
		{"a=1", `a["1"] []`},
		{"a = 1\nb=x_y.z # c=2\n", `a["1"] b["x_y.z"] []`},
		{`a="\"\\\" = {x} # no" b=""`, `a["\"\\\" = {x} # no"] b[""] []`},
		{"a=\"two\nlines\"", `a["two\nlines"] []`},
		{`a={} b={1} c={ 1 , "x,y" }`, `a[] b["1"] c["1" "x,y"] []`},
		{"s {\na=1\n}\ns \"t\" { }\nmbr mbr-a {partition 0 {a=1}}", `[s:"" a["1"] [] s:"t" [] mbr:"mbr-a" [partition:"0" a["1"] []]]`},
	} {
		top, err := parseMeta(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
		} else if got := describe(top); got != c.want {
			t.Errorf("%q is read as\n%s, should be\n%s", c.text, got, c.want)
		}
	}
}

// describe writes a section in one line, values a, b and c only.
func describe(s *section) string {
	var b strings.Builder
	for _, name := range []string{"a", "b", "c"} {
		if v, ok := s.values[name]; ok {
			fmt.Fprintf(&b, "%s%q ", name, v)
		}
	}
	var subs []string
	for _, sub := range s.sections {
		subs = append(subs, fmt.Sprintf("%s:%q %s", sub.kind, sub.title, describe(sub)))
	}
	return b.String() + "[" + strings.Join(subs, " ") + "]"
}

func TestMetaConfMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"a":                       "line 1: a: a value is missing",
		"a b":                     "a is neither a value nor a section",
		"\n\na=":                  "line 3: a: a value is missing",
		"a=\"x":                   "does not end",
		`a="\n"`:                  "backslash",
		`a="x\`:                   "backslash",
		"a=\"\x00\"":              "NUL",
		"a={1 2}":                 "comma",
		"a={1,}":                  "a value is missing",
		"a={1":                    "comma",
		"a={,1}":                  "a value is missing",
		"a {":                     "a is not closed",
		"}":                       "closes nothing",
		"a { } }":                 "closes nothing",
		"=1":                      `found '='`,
		"a=1\na=1":                "line 2: a: is there twice",
		strings.Repeat("a {", 10): "deeper than 8",
	} {
		if _, err := parseMeta(text); verdictOf(t, err) != Malformed || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, should be …%s…", text, err, want)
		}
	}
}

func TestParseKeys(t *testing.T) {
	all := loadSamples(t)
	var texts []string
	for _, k := range all.Keys {
		texts = append(texts, k.Text, " "+k.Text+"\n") // each twice
	}
	keys, err := ParseKeys(texts...)
	if err != nil || len(keys.ed25519) != 3 || len(keys.rsa) != 3 || keys.Empty() {
		t.Errorf("%d and %d keys: %v", len(keys.ed25519), len(keys.rsa), err)
	}
	for _, bad := range []string{"", "x", "AAAA", all.Keys[0].Text + "A", strings.TrimRight(all.Keys[0].Text, "="),
		"-----BEGIN PUBLIC KEY-----", all.Keys[3].Text + all.Keys[4].Text,
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAcXkvUgMjtRyHZcxBQcIVi8nVBmnNX6J1EkRgyLeTcVQ=\n-----END PUBLIC KEY-----\n"} {
		keys, err := ParseKeys(bad, all.Keys[0].Text)
		if err == nil || !strings.Contains(err.Error(), "key 1: ") || len(keys.ed25519) != 1 || len(keys.rsa) != 0 {
			t.Errorf("%.40q: %+v, %v", bad, keys, err)
		}
	}
	if !(Keys{}).Empty() {
		t.Error("no keys are some")
	}
}
