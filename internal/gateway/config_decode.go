package gateway

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// decode fills v, a settable part of a Config, from a YAML node. It is stricter
// than yaml.v3: nothing is converted silently, every mistake is told with its
// position, and aliases, which can make a small file huge, are refused.
func (r *report) decode(n *yaml.Node, v reflect.Value, field, want string) {
	switch {
	case n.Kind == yaml.AliasNode:
		r.refuse(field, "found the alias *%s; aliases are not taken, write the value out", n.Value)
		return
	case n.Style&yaml.TaggedStyle != 0:
		r.refuse(field, "found the tag %s; tags are not taken, write the value alone", quote(n.Tag))
		return
	}
	null := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
	switch v.Kind() {
	case reflect.Pointer:
		if v.Type().Elem().Kind() != reflect.Struct && null {
			return
		}
		r.decode(n, allocated(v), field, want)
	case reflect.Struct:
		r.decodeSection(n, null, v, field)
	case reflect.Map:
		r.decodeNamed(n, null, v, field)
	case reflect.Slice:
		r.decodeList(n, null, v, field)
	default:
		r.decodeScalar(n, v, field, want)
	}
}

// allocated is what the pointer v points to, made with its defaults if need be.
func allocated(v reflect.Value) reflect.Value {
	if v.IsNil() {
		v.Set(newValue(v.Type().Elem()))
	}
	return v.Elem()
}

// newValue is a pointer to a new t with its defaults.
func newValue(t reflect.Type) reflect.Value {
	p := reflect.New(t)
	if s, ok := p.Interface().(section); ok {
		s.setDefaults()
	}
	return p
}

// decodeSection fills a struct. A section whose keys are all commented out is
// null and keeps its defaults.
func (r *report) decodeSection(n *yaml.Node, null bool, v reflect.Value, field string) {
	if null {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.refuse(field, "found %s, want the keys %s", describe(n), strings.Join(keys(v.Type()), ", "))
		return
	}
	r.eachKey(n, field, func(key *yaml.Node, value *yaml.Node) {
		f, i, ok := fieldNamed(v.Type(), key.Value)
		if !ok {
			r.unknownKey(key, field, keys(v.Type()))
			return
		}
		r.decode(value, v.Field(i), child(field, key.Value), f.Tag.Get("want"))
	})
}

// A file that has more is refused, as one of another kind.
const (
	maxClasses = 1000
	maxList    = 10000
)

// decodeNamed fills a map of sections.
func (r *report) decodeNamed(n *yaml.Node, null bool, v reflect.Value, field string) {
	if null {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.refuse(field, "found %s, want a name and its section for each", describe(n))
		return
	}
	if found := len(n.Content) / 2; found > maxClasses {
		r.refuse(field, "found %d, want at most %d", found, maxClasses)
		return
	}
	r.eachKey(n, field, func(key *yaml.Node, value *yaml.Node) {
		name := reflect.ValueOf(key.Value)
		entry := newValue(v.Type().Elem()).Elem()
		if old := v.MapIndex(name); old.IsValid() {
			entry.Set(old)
		}
		r.decode(value, entry, child(field, key.Value), "")
		v.SetMapIndex(name, entry)
	})
}

func (r *report) decodeList(n *yaml.Node, null bool, v reflect.Value, field string) {
	if null {
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.refuse(field, "found %s, want a list: [a, b]", describe(n))
		return
	}
	if found := len(n.Content); found > maxList {
		r.refuse(field, "found %d entries, want at most %d", found, maxList)
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, len(n.Content))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", field, i)
		r.given[at] = position{line: item.Line, column: item.Column}
		e := newValue(v.Type().Elem()).Elem()
		r.decode(item, e, at, "")
		list = reflect.Append(list, e)
	}
	v.Set(list)
}

// eachKey visits the keys of a mapping, notes where they are, and refuses a
// key given twice.
func (r *report) eachKey(n *yaml.Node, section string, visit func(key, value *yaml.Node)) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := position{line: key.Line, column: key.Column}
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge":
			r.refuseAt(at, section, "found a key that is not a word; write the keys out, without merging")
			continue
		case seen[key.Value] > 0:
			r.refuseAt(at, child(section, key.Value), "given twice, first on line %d; keep one", seen[key.Value])
			continue
		}
		seen[key.Value] = key.Line
		if value.Kind != yaml.MappingNode && value.ShortTag() != "!!null" {
			at = position{line: value.Line, column: value.Column}
		}
		r.given[child(section, key.Value)] = at
		visit(key, value)
	}
}

func (r *report) unknownKey(key *yaml.Node, section string, known []string) {
	at := position{line: key.Line, column: key.Column}
	if name := nearest(key.Value, known); name != "" {
		r.refuseAt(at, child(section, key.Value), "unknown key; did you mean %s?", name)
		return
	}
	r.refuseAt(at, child(section, key.Value), "unknown key; the keys here are %s", strings.Join(known, ", "))
}

// decodeScalar fills a single value, if the YAML type is the right one.
func (r *report) decodeScalar(n *yaml.Node, v reflect.Value, field, want string) {
	tag := n.ShortTag()
	var fits bool
	switch v.Interface().(type) {
	case bool:
		fits = tag == "!!bool"
	case int:
		fits = tag == "!!int"
	case float64:
		fits = tag == "!!int" || tag == "!!float"
	case time.Duration, Size:
		fits = tag == "!!str" || tag == "!!int" || tag == "!!float"
	case string:
		fits = tag == "!!str"
	}
	if n.Kind != yaml.ScalarNode || !fits {
		r.refuse(field, "found %s, want %s", describe(n), wanted(v, want, n))
		return
	}
	if err := setScalar(v, n.Value); err != nil {
		r.refuse(field, "%v", err)
	}
}

// describe says what kind of thing a node is, in an operator's words.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!str":
		return "the text " + quote(n.Value)
	}
	return quote(n.Value)
}

// wanted says what a scalar must look like.
func wanted(v reflect.Value, want string, n *yaml.Node) string {
	switch v.Interface().(type) {
	case bool:
		return "true or false"
	case int:
		return "a whole number, without quotes"
	case float64:
		return "a number, without quotes"
	case time.Duration:
		return "a duration such as 30s"
	case Size:
		return "a size such as 256MiB"
	}
	if want != "" {
		return want
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
		return "text: put it in quotes"
	}
	return "text"
}
