package jsonconf

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Unmarshal reads data, one JSON value, into what the pointer v points to.
// Fields that data does not name keep their value; the maps and slices that it
// names are replaced. The error joins all problems, each like
//
//	config: retry.backoff.base is 50, want a duration such as "250ms"
func Unmarshal(data []byte, v any) error {
	target := reflect.ValueOf(v)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("config: the target is a %T, want a pointer that is not nil", v)
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return syntaxError(data, err)
	}
	fresh := reflect.New(target.Type().Elem()).Elem()
	fresh.Set(target.Elem())
	var r reader
	r.value("", raw, fresh)
	if len(r.problems) > 0 {
		return errors.Join(r.problems...)
	}
	target.Elem().Set(fresh)
	return nil
}

func syntaxError(data []byte, err error) error {
	syntax, ok := errors.AsType[*json.SyntaxError](err)
	if !ok {
		return fmt.Errorf("config: %w", err)
	}
	before := data[:min(int(syntax.Offset), len(data))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return fmt.Errorf("config: line %d, column %d: %w", line, column, err)
}

// reader collects the problems of one value.
type reader struct{ problems []error }

func (r *reader) fail(path, format string, args ...any) {
	if path == "" {
		path = "the value"
	}
	r.problems = append(r.problems, fmt.Errorf("config: %s "+format, append([]any{path}, args...)...))
}

// value reads raw, which is valid JSON, into dst. It never writes through a
// pointer, slice or map that dst holds already: those belong to the caller.
func (r *reader) value(path string, raw json.RawMessage, dst reflect.Value) {
	t, k := dst.Type(), dst.Kind()
	switch {
	case string(raw) == "null":
		dst.SetZero()
	case t == reflect.TypeFor[time.Duration]():
		d, err := parseDuration(raw)
		if err != nil {
			r.fail(path, `is %s, want a duration such as "250ms"`, brief(raw))
		}
		dst.SetInt(int64(d))
	case isScalar(k) || has[encoding.TextUnmarshaler](t) || path != "" && has[json.Unmarshaler](t):
		r.scalar(path, raw, dst)
	case k == reflect.Pointer:
		pointee := reflect.New(t.Elem())
		if !dst.IsNil() {
			pointee.Elem().Set(dst.Elem())
		}
		r.value(path, raw, pointee.Elem())
		dst.Set(pointee)
	case k == reflect.Slice:
		var elements []json.RawMessage
		if json.Unmarshal(raw, &elements) != nil {
			r.fail(path, "is %s, want a list", brief(raw))
			return
		}
		dst.Set(reflect.MakeSlice(t, len(elements), len(elements)))
		for i, e := range elements {
			r.value(element(path, i), e, dst.Index(i))
		}
	case k == reflect.Map && t.Key().Kind() == reflect.String:
		dst.Set(reflect.MakeMap(t))
		r.object(path, raw, func(name string, raw json.RawMessage) {
			e := reflect.New(t.Elem()).Elem()
			r.value(member(path, name), raw, e)
			dst.SetMapIndex(reflect.ValueOf(name).Convert(t.Key()), e)
		})
	case k == reflect.Struct:
		r.structure(path, raw, dst)
	default:
		r.fail(path, "is a %s, which has no form in JSON", t)
	}
}

func (r *reader) structure(path string, raw json.RawMessage, dst reflect.Value) {
	fields := fieldsOf(dst.Type())
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	r.object(path, raw, func(name string, raw json.RawMessage) {
		if i := slices.Index(names, name); i >= 0 {
			r.value(member(path, name), raw, dst.FieldByIndex(fields[i].index))
			return
		}
		if in, ok := onlyInGo(dst.Type(), name); ok {
			r.fail(member(path, name), "is not for JSON, set %s in Go", in)
			return
		}
		r.fail(member(path, name), "is unknown, want one of %s", strings.Join(names, ", "))
	})
}

// onlyInGo returns the field that JSON has no name for but would call so.
func onlyInGo(t reflect.Type, name string) (field string, ok bool) {
	for _, f := range reflect.VisibleFields(t) {
		if f.Tag.Get("json") == "-" && strings.EqualFold(f.Name, name) {
			return f.Name, true
		}
	}
	return "", false
}

// object calls each for the members of the object raw, in their order.
func (r *reader) object(path string, raw json.RawMessage, each func(name string, raw json.RawMessage)) {
	if raw[0] != '{' {
		r.fail(path, "is %s, want an object", brief(raw))
		return
	}
	seen := make(map[string]bool)
	d := json.NewDecoder(bytes.NewReader(raw))
	_, err := d.Token() // the brace
	for err == nil && d.More() {
		var token json.Token
		var value json.RawMessage
		if token, err = d.Token(); err == nil {
			err = d.Decode(&value)
		}
		name, _ := token.(string)
		switch {
		case err != nil: // cannot be, for raw is valid; but never without a word
			r.fail(path, "is broken: %w", err)
		case seen[name]:
			r.fail(member(path, name), "is given twice, want it once")
		default:
			seen[name] = true
			each(name, value)
		}
	}
}

// scalar leaves raw to encoding/json, but words the errors.
func (r *reader) scalar(path string, raw json.RawMessage, dst reflect.Value) {
	t := dst.Type()
	err := json.Unmarshal(raw, dst.Addr().Interface())
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && !has[json.Unmarshaler](t) {
		r.fail(path, "is %s, want %s", brief(raw), form(t))
	} else if err != nil {
		r.fail(path, "is %s: %w", brief(raw), err)
	}
}

// form says what the JSON of a scalar of type t looks like.
func form(t reflect.Type) string {
	switch k := t.Kind(); {
	case has[encoding.TextUnmarshaler](t), k == reflect.String:
		return "a string"
	case k == reflect.Bool:
		return "true or false"
	case k <= reflect.Int64:
		most := int64(1)<<(t.Bits()-1) - 1
		return fmt.Sprintf("a whole number from %d to %d", -most-1, most)
	case k <= reflect.Uintptr:
		return fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-t.Bits()))
	default:
		return "a number that fits a " + k.String()
	}
}

func parseDuration(raw json.RawMessage) (time.Duration, error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return 0, err
	}
	return time.ParseDuration(text)
}

// brief keeps an error readable where the value is half a document.
func brief(raw json.RawMessage) string {
	const most = 60
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil || b.Len() <= most {
		return b.String()
	}
	return strings.ToValidUTF8(string(b.Bytes()[:most]), "") + "…"
}
