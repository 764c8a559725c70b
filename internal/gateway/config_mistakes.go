package gateway

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Mistake is one thing wrong with a configuration, in one line.
type Mistake struct {
	Where string // FILE:LINE:COLUMN, FILE, or the environment variable; "" for a Config not read from a file
	Field string // as in hub.url; "" for the file as a whole
	Text  string // what was found, and what to do
}

func (m Mistake) Error() string {
	out := m.Text
	if m.Field != "" {
		out = m.Field + ": " + out
	}
	if m.Where != "" {
		out = m.Where + ": " + out
	}
	return out
}

// Mistakes are all that is wrong with a configuration, in the order of the
// file. [Load] and [Config.Validate] fail with no other type.
type Mistakes []Mistake

// maxMistakes is how many are told at once: more would be a file of another
// kind.
const maxMistakes = 50

// Error is one line for each.
func (ms Mistakes) Error() string {
	lines := make([]string, 0, len(ms))
	for i, m := range ms {
		if i == maxMistakes {
			lines = append(lines, fmt.Sprintf("and %d more mistakes", len(ms)-i))
			break
		}
		lines = append(lines, m.Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each Mistake to errors.As.
func (ms Mistakes) Unwrap() []error {
	errs := make([]error, len(ms))
	for i, m := range ms {
		errs[i] = m
	}
	return errs
}

// A position is where a field was given. The zero value is nowhere.
type position struct {
	line, column int
	variable     string // of the environment
}

func (p position) in(file string) string {
	switch {
	case p.variable != "":
		return p.variable
	case p.line > 0:
		return fmt.Sprintf("%s:%d:%d", file, p.line, max(1, p.column))
	}
	return file
}

// before orders the file from top to bottom, then what has no line in it.
func (p position) before(q position) int {
	end := func(p position) int {
		if p.line > 0 {
			return 0
		}
		return 1
	}
	return cmp.Or(end(p)-end(q), p.line-q.line, p.column-q.column, strings.Compare(p.variable, q.variable))
}

// A report collects mistakes and knows where fields were given.
type report struct {
	file  string
	given map[string]position // by field
	found []foundMistake
	wrong map[string]bool // the fields of found

	// chosen are the variables that gave a section of their own, by the section
	// around it, which they may have made to hold one too many.
	chosen map[string]position
}

func newReport(file string) *report {
	return &report{file: file, given: map[string]position{}, chosen: map[string]position{}, wrong: map[string]bool{}}
}

type foundMistake struct {
	at          position
	field, text string
}

// refuse notes a mistake at the field, or where the section that lacks it is.
func (r *report) refuse(field, format string, args ...any) {
	at, section := r.chosen[field], field
	for section != "" && at == (position{}) {
		if p, ok := r.given[section]; ok {
			at = p
			break
		}
		section = parent(section)
	}
	r.refuseAt(at, field, format, args...)
}

func (r *report) refuseAt(at position, field, format string, args ...any) {
	r.found = append(r.found, foundMistake{at, field, oneLine(fmt.Sprintf(format, args...))})
	r.wrong[field] = true
}

// refused reports whether the field, or a section it is in, has a mistake.
func (r *report) refused(field string) bool {
	for ; field != ""; field = parent(field) {
		if r.wrong[field] {
			return true
		}
	}
	return false
}

// err is nil or Mistakes.
func (r *report) err() error {
	if len(r.found) == 0 {
		return nil
	}
	slices.SortStableFunc(r.found, func(a, b foundMistake) int { return a.at.before(b.at) })
	ms := make(Mistakes, len(r.found))
	for i, m := range r.found {
		ms[i] = Mistake{Where: m.at.in(r.file), Field: m.field, Text: m.text}
	}
	return ms
}

// child is the field named key in a section.
func child(section, key string) string {
	if !plainName(key) {
		key = quote(key)
	}
	if section == "" {
		return key
	}
	return section + "." + key
}

// parent is the section a field is in. Quoted keys may hold dots, which makes
// it name no section, and the next one up is tried.
func parent(field string) string {
	return field[:max(0, strings.LastIndexAny(field, ".["))]
}

// plainName reports whether s may name a class: [A-Za-z0-9][A-Za-z0-9_-]{0,63}.
func plainName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '-') {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 64
}

// quote shows somebody's text, cut to a length that fits a line.
func quote(s string) string {
	const longest = 60 // bytes
	if len(s) > longest {
		return strconv.Quote(strings.ToValidUTF8(s[:longest], "")) + "…"
	}
	return strconv.Quote(s)
}

// oneLine leaves nothing in s that could begin another line of the log.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

// nearest is the name most like s, or the first that s begins, or "" if there
// is none.
func nearest(s string, names []string) string {
	best, least := "", 1+min(3, len(s)/3)
	for _, name := range names {
		if d := distance(s, name, least); d < least {
			best, least = name, d
		}
	}
	if i := slices.IndexFunc(names, func(name string) bool { return strings.HasPrefix(name, s+"_") }); best == "" && i >= 0 {
		return names[i]
	}
	return best
}

// distance is how many letters must be added, dropped or changed to make b of
// a (Levenshtein), or limit if that is not less.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}
