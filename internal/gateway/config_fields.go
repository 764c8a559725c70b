package gateway

import (
	"reflect"
	"slices"
	"strings"
)

// keys are the yaml keys of a struct.
func keys(t reflect.Type) []string {
	var out []string
	for f := range fields(t) {
		out = append(out, f.Tag.Get("yaml"))
	}
	return out
}

// fieldNamed is the field of a struct with a yaml key, and its index.
func fieldNamed(t reflect.Type, key string) (reflect.StructField, int, bool) {
	for f := range fields(t) {
		if f.Tag.Get("yaml") == key {
			return f, f.Index[0], true
		}
	}
	return reflect.StructField{}, 0, false
}

// fields are those of a struct that a file can give.
func fields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); f.Tag.Get("yaml") != "-" && !yield(f) {
				return
			}
		}
	}
}

// A leaf is one value of a Config: a scalar or a list.
type leaf struct {
	field string
	kind  string // of file that its path tag names
	value reflect.Value
}

// leaves visits every leaf below v, which must be settable. What visit sets
// stays, also inside maps. Sections that are not there have no leaves.
func leaves(v reflect.Value, field string, visit func(leaf)) {
	switch {
	case v.Kind() == reflect.Pointer && v.Type().Elem().Kind() == reflect.Struct:
		if !v.IsNil() {
			leaves(v.Elem(), field, visit)
		}
	case v.Kind() == reflect.Struct:
		for f := range fields(v.Type()) {
			at := child(field, f.Tag.Get("yaml"))
			if kind := f.Tag.Get("path"); kind != "" {
				visit(leaf{at, kind, v.FieldByIndex(f.Index)})
				continue
			}
			leaves(v.FieldByIndex(f.Index), at, visit)
		}
	case v.Kind() == reflect.Map:
		names := v.MapKeys()
		slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, name := range names {
			entry := reflect.New(v.Type().Elem()).Elem()
			entry.Set(v.MapIndex(name))
			leaves(entry, child(field, name.String()), visit)
			v.SetMapIndex(name, entry)
		}
	default:
		visit(leaf{field, "", v})
	}
}
