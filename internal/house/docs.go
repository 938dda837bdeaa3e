package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// PackageComments returns the packages, programs among them, whose production
// files have no package comment.
func (t *Tree) PackageComments() []string {
	documented := make(map[string]bool)
	for _, f := range t.Files {
		if !f.Test {
			documented[f.ImportPath] = documented[f.ImportPath] || f.Syntax.Doc.Text() != ""
		}
	}
	var problems []string
	for _, pkg := range slices.Sorted(maps.Keys(documented)) {
		if !documented[pkg] {
			problems = append(problems, pkg+": no package comment")
		}
	}
	return problems
}

// DocComments returns the exported names of packages (not of programs) that
// have no doc comment: functions, types, methods of exported types, and
// constants and variables, for which a comment on their group will do.
func (t *Tree) DocComments() []string {
	var problems []string
	missing := func(pos token.Pos, name string) {
		problems = append(problems, t.at(pos)+name+" is exported and has no doc comment")
	}
	for _, f := range t.Files {
		if !f.production() || f.Syntax.Name.Name == "main" {
			continue
		}
		for _, decl := range f.Syntax.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if name, exported := funcName(d); exported && d.Doc.Text() == "" {
					missing(d.Pos(), name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					doc := d.Doc.Text()
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if d.Lparen.IsValid() {
							doc = "" // a comment on a group says nothing of a type in it
						}
						if s.Name.IsExported() && doc+s.Doc.Text()+s.Comment.Text() == "" {
							missing(s.Pos(), s.Name.Name)
						}
					case *ast.ValueSpec:
						exported := slices.IndexFunc(s.Names, (*ast.Ident).IsExported)
						if exported >= 0 && doc+s.Doc.Text()+s.Comment.Text() == "" {
							missing(s.Pos(), s.Names[exported].Name)
						}
					}
				}
			}
		}
	}
	return problems
}

// funcName returns the name that users know a function or method by, and
// whether they can reach it.
func funcName(d *ast.FuncDecl) (name string, exported bool) {
	if d.Recv == nil {
		return d.Name.Name, d.Name.IsExported()
	}
	receiver := named(d.Recv.List[0].Type)
	if receiver == nil {
		return d.Name.Name, false
	}
	return receiver.Name + "." + d.Name.Name, receiver.IsExported() && d.Name.IsExported()
}

// named returns the identifier of a type of the same package behind pointers,
// parentheses and type arguments, or nil.
func named(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.StarExpr:
		return named(e.X)
	case *ast.ParenExpr:
		return named(e.X)
	case *ast.IndexExpr:
		return named(e.X)
	case *ast.IndexListExpr:
		return named(e.X)
	default:
		return nil
	}
}

var (
	saysDefault = regexp.MustCompile(`\bDefault:\s+\S`)
	jsonName    = regexp.MustCompile(`^[a-z][A-Za-z0-9]*$`)
)

// ConfigFields checks the exported fields of config structs: those whose name
// is or ends in Config, and those structs with JSON tags that such a field is
// made of. Each field's comment must have "Default: …" in its last paragraph
// or say that the field is Required; an embedded struct's says what it likes,
// and one comment may speak of several fields by name.
// In declarative files each field must also have a JSON tag: "-", or a
// camelCase name with omitempty or omitzero.
func (t *Tree) ConfigFields(declarative func(*File) bool) []string {
	var problems []string
	structs := t.structs()
	seen := make(map[string]bool)
	var check func(key string, isConfig bool)
	check = func(key string, isConfig bool) {
		s, ok := structs[key]
		if !ok || seen[key] {
			return
		}
		seen[key] = true
		tagged := func(field *ast.Field) bool { return field.Tag != nil && strings.Contains(field.Tag.Value, "json:") }
		if !isConfig && !slices.ContainsFunc(s.fields, tagged) {
			return // a value of another kind
		}
		said := ""
		for _, field := range s.fields {
			if field.Doc != nil {
				said = field.Doc.Text()
			}
			for _, name := range fieldNames(field) {
				if !ast.IsExported(name) {
					continue
				}
				place := t.at(field.Pos()) + s.name + "." + name
				if problem := commentProblem(field, name, said); problem != "" {
					problems = append(problems, place+": "+problem)
				}
				if problem := tagProblem(field); problem != "" && declarative(s.file) {
					problems = append(problems, place+": "+problem)
				}
			}
			for _, used := range usedTypes(s.file, field.Type) {
				check(used, false)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(structs)) {
		if strings.HasSuffix(key, "Config") && ast.IsExported(structs[key].name) {
			check(key, true)
		}
	}
	return problems
}

type structType struct {
	file   *File
	name   string
	fields []*ast.Field
}

// structs returns the struct types of the production code by "path.Name".
func (t *Tree) structs() map[string]structType {
	found := make(map[string]structType)
	for _, f := range t.Files {
		if !f.production() {
			continue
		}
		for _, decl := range f.Syntax.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range d.Specs {
				if s, ok := spec.(*ast.TypeSpec); ok {
					if body, ok := s.Type.(*ast.StructType); ok {
						found[f.ImportPath+"."+s.Name.Name] = structType{f, s.Name.Name, body.Fields.List}
					}
				}
			}
		}
	}
	return found
}

func fieldNames(field *ast.Field) []string {
	if len(field.Names) == 0 { // embedded
		if sel, ok := field.Type.(*ast.SelectorExpr); ok {
			return []string{sel.Sel.Name}
		}
		if id := named(field.Type); id != nil {
			return []string{id.Name}
		}
	}
	var names []string
	for _, id := range field.Names {
		names = append(names, id.Name)
	}
	return names
}

// usedTypes returns the keys, as in structs, of the types that values of the
// type e hold.
func usedTypes(f *File, e ast.Expr) []string {
	switch e := e.(type) {
	case *ast.Ident:
		return []string{f.ImportPath + "." + e.Name}
	case *ast.SelectorExpr:
		id, ok := e.X.(*ast.Ident)
		if !ok {
			return nil
		}
		for _, spec := range f.Syntax.Imports {
			if p := importPath(spec.Path.Value); localName(spec, p) == id.Name {
				return []string{p + "." + e.Sel.Name}
			}
		}
		return nil
	case *ast.StarExpr:
		return usedTypes(f, e.X)
	case *ast.ArrayType:
		return usedTypes(f, e.Elt)
	case *ast.MapType:
		return usedTypes(f, e.Value)
	default:
		return nil
	}
}

// commentProblem looks at what the field's comment says, or, if it has none,
// the comment before it, which may speak of both.
func commentProblem(field *ast.Field, name, said string) string {
	comment := strings.TrimSpace(said)
	if field.Doc == nil && !regexp.MustCompile(`\b`+name+`\b`).MatchString(comment) {
		comment = ""
	}
	embedded := len(field.Names) == 0
	paragraphs := strings.Split(comment, "\n\n")
	switch {
	case comment == "":
		return "no comment"
	case embedded, strings.Contains(comment, "Required"), saysDefault.MatchString(paragraphs[len(paragraphs)-1]):
		return ""
	default:
		return `the comment does not end with "Default: …"`
	}
}

func tagProblem(field *ast.Field) string {
	var tag reflect.StructTag
	if field.Tag != nil {
		tag = reflect.StructTag(strings.Trim(field.Tag.Value, "`"))
	}
	value, ok := tag.Lookup("json")
	name, options, _ := strings.Cut(value, ",")
	switch {
	case !ok && len(field.Names) == 0, value == "-":
		return ""
	case !ok:
		return `no json tag, want a camelCase name with omitempty, or "-"`
	case !jsonName.MatchString(name):
		return fmt.Sprintf("the json name is %q, want camelCase", name)
	case options != "omitempty" && options != "omitzero":
		return "the json tag lacks omitempty"
	default:
		return ""
	}
}
