package firmware

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// A section of meta.conf, the text in an fwup archive that is signed:
//
//	meta-version=1.2.3
//	file-resource "app.bin" {
//	length={0,32768,4096}
//	}
//
// Bare words, quoted texts with \" and \\, lists, and sections in sections:
// what fwup writes, which is less than what its own parser takes.
type section struct {
	kind, title string
	values      map[string][]string // a plain value is a list of one
	sections    []*section
}

// metaDepth is how deep sections nest; fwup's go three deep.
const metaDepth = 8

// A metaParser reads left to right and never back.
type metaParser struct {
	text string
	at   int
}

func parseMeta(text string) (*section, error) {
	p := &metaParser{text: text}
	top := newSection("", "")
	if err := p.body(top, 0); err != nil {
		line := 1 + strings.Count(text[:min(p.at, len(text))], "\n")
		return nil, refuse(Malformed, "meta.conf line %d: %v", line, err)
	}
	return top, nil
}

func newSection(kind, title string) *section {
	return &section{kind: kind, title: title, values: map[string][]string{}}
}

// body reads the entries of s up to the brace that closes it, or to the end of
// the text at depth 0.
func (p *metaParser) body(s *section, depth int) error {
	for {
		p.space()
		switch {
		case p.at == len(p.text) && depth == 0:
			return nil
		case p.at == len(p.text):
			return fmt.Errorf("section %s is not closed", s.kind)
		case p.next('}'):
			if depth == 0 {
				return fmt.Errorf("a brace closes nothing")
			}
			return nil
		}
		name := p.word()
		if name == "" {
			return fmt.Errorf("found %q where a name should be", p.text[p.at])
		}
		p.space()
		if p.next('=') {
			if err := p.value(s, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			continue
		}
		if err := p.section(s, name, depth); err != nil {
			return err
		}
	}
}

func (p *metaParser) section(in *section, kind string, depth int) error {
	title := ""
	if !p.peek('{') {
		var err error
		if title, err = p.scalar(); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		p.space()
	}
	switch {
	case !p.next('{'):
		return fmt.Errorf("%s is neither a value nor a section", kind)
	case depth == metaDepth:
		return fmt.Errorf("sections nest deeper than %d", metaDepth)
	}
	s := newSection(kind, title)
	in.sections = append(in.sections, s)
	return p.body(s, depth+1)
}

// value reads what follows a =. The same name twice would leave it to the
// reader which one counts.
func (p *metaParser) value(s *section, name string) error {
	if _, twice := s.values[name]; twice {
		return fmt.Errorf("is there twice")
	}
	p.space()
	if !p.next('{') {
		v, err := p.scalar()
		s.values[name] = []string{v}
		return err
	}
	list := []string{}
	for p.space(); !p.next('}'); p.space() {
		if len(list) > 0 && !p.next(',') {
			return fmt.Errorf("a comma is missing in the list")
		}
		p.space()
		v, err := p.scalar()
		if err != nil {
			return err
		}
		list = append(list, v)
	}
	s.values[name] = list
	return nil
}

func (p *metaParser) scalar() (string, error) {
	if !p.next('"') {
		w := p.word()
		if w == "" {
			return "", fmt.Errorf("a value is missing")
		}
		return w, nil
	}
	var b strings.Builder
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch {
		case c == '"':
			return b.String(), nil
		case c == 0:
			return "", fmt.Errorf("NUL in a text")
		case c == '\\':
			if !p.peek('"') && !p.peek('\\') {
				return "", fmt.Errorf(`a backslash precedes neither \ nor "`)
			}
			c = p.text[p.at]
			p.at++
		}
		b.WriteByte(c)
	}
	return "", fmt.Errorf("a quoted text does not end")
}

// word reads a name or an unquoted value.
func (p *metaParser) word() string {
	from := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '_' && c != '.' && c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			break
		}
		p.at++
	}
	return p.text[from:p.at]
}

// space passes over white space and comments.
func (p *metaParser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\r', '\n':
			p.at++
		case '#':
			if eol := strings.IndexByte(p.text[p.at:], '\n'); eol >= 0 {
				p.at += eol
			} else {
				p.at = len(p.text)
			}
		default:
			return
		}
	}
}

func (p *metaParser) peek(c byte) bool { return p.at < len(p.text) && p.text[p.at] == c }

func (p *metaParser) next(c byte) bool {
	ok := p.peek(c)
	if ok {
		p.at++
	}
	return ok
}

// A fileResource is what meta.conf says of a resource.
type fileResource struct {
	name   string
	runs   []int64 // lengths of data, hole, data, … of the file
	stored int64   // bytes in the archive: the data runs
	size   int64   // bytes of the file
	digest [blake2b.Size256]byte
}

// resources reads the file-resource sections. No file may be larger than max.
func (s *section) resources(max int64) ([]fileResource, error) {
	var all []fileResource
	known := map[string]bool{}
	for _, sub := range s.sections {
		if sub.kind != "file-resource" {
			continue
		}
		f, err := sub.resource(max)
		if err != nil {
			return nil, err
		}
		if known[f.name] {
			return nil, refuse(Malformed, "meta.conf lists %q twice", f.name)
		}
		known[f.name] = true
		all = append(all, f)
	}
	return all, nil
}

func (s *section) resource(max int64) (fileResource, error) {
	f := fileResource{name: s.title}
	// A resource of length 0 has no length line.
	for i, text := range s.values["length"] {
		n, err := strconv.ParseUint(text, 10, 63)
		switch {
		case err != nil:
			return f, refuse(Malformed, "meta.conf gives %q the length %q", s.title, text)
		case int64(n) > max-f.size:
			return f, refuse(TooBig, "meta.conf gives %q more than %d bytes", s.title, max)
		case i%2 == 0:
			f.stored += int64(n)
		}
		f.size += int64(n)
		f.runs = append(f.runs, int64(n))
	}
	// fwup compares the text, and writes it in lower case.
	text := strings.Join(s.values["blake2b-256"], ",")
	digest, err := hex.DecodeString(text)
	if err != nil || len(digest) != len(f.digest) || strings.ToLower(text) != text {
		return f, refuse(Malformed, "meta.conf has no BLAKE2b-256 for %q, only %q", s.title, text)
	}
	f.digest = [blake2b.Size256]byte(digest)
	return f, nil
}
