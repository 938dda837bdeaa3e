package house

import (
	"fmt"
	"go/ast"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// localName is the name by which a file knows what it imports as path.
func localName(spec *ast.ImportSpec, importPath string) string {
	if spec.Name != nil {
		return spec.Name.Name
	}
	base := path.Base(importPath)
	if regexp.MustCompile(`^v\d+$`).MatchString(base) {
		base = path.Base(path.Dir(importPath))
	}
	return base
}

// Uses returns where files that meet applies use the function or other name of
// the package at importPath.
func (t *Tree) Uses(importedPath, name string, applies func(*File) bool) []string {
	var problems []string
	for _, f := range t.Files {
		if !applies(f) {
			continue
		}
		local := ""
		for _, spec := range f.Syntax.Imports {
			if importPath(spec.Path.Value) == importedPath {
				local = localName(spec, importedPath)
			}
		}
		if local == "" {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == name {
				if id, ok := sel.X.(*ast.Ident); ok && id.Name == local {
					problems = append(problems, t.at(sel.Pos())+"uses "+importedPath+"."+name)
				}
			}
			return true
		})
	}
	return problems
}

// InitFunctions returns the init functions of the production code, but for those in
// the files that are allowed to have one.
func (t *Tree) InitFunctions(allowed ...string) []string {
	var problems []string
	for _, f := range t.Files {
		if slices.Contains(allowed, f.Path) {
			continue
		}
		for _, decl := range f.Syntax.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && f.production() && d.Recv == nil && d.Name.Name == "init" {
				problems = append(problems, t.at(d.Pos())+"an init function")
			}
		}
	}
	return problems
}

// LongFiles returns the production files of more than most lines.
func (t *Tree) LongFiles(most int) []string {
	var problems []string
	for _, f := range t.Files {
		if n := strings.Count(f.Text, "\n"); f.production() && n > most {
			problems = append(problems, fmt.Sprintf("%s: %d lines, want <= %d", f.Path, n, most))
		}
	}
	return problems
}

// PackageNames returns the packages that bear one of the names, or whose
// directory does.
func (t *Tree) PackageNames(names ...string) []string {
	found := make(map[string]bool)
	for _, f := range t.Files {
		for _, name := range []string{f.Syntax.Name.Name, path.Base(f.ImportPath)} {
			if slices.Contains(names, name) {
				found[f.ImportPath+": no package is called "+name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// Matches returns the lines of the production code that match the expression.
func (t *Tree) Matches(expression *regexp.Regexp) []string {
	var problems []string
	for _, f := range t.Files {
		if f.production() {
			problems = append(problems, matchingLines(f.Path, f.Text, expression)...)
		}
	}
	return problems
}

// MatchesIn returns the lines of the named files of fsys that match the
// expression.
func MatchesIn(fsys fs.FS, names []string, expression *regexp.Regexp) ([]string, error) {
	var problems []string
	for _, name := range names {
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		problems = append(problems, matchingLines(name, string(text), expression)...)
	}
	return problems, nil
}

func matchingLines(name, text string, expression *regexp.Regexp) []string {
	var problems []string
	for i, line := range strings.Split(text, "\n") {
		if found := expression.FindString(line); found != "" {
			problems = append(problems, fmt.Sprintf("%s:%d: %q", name, i+1, found))
		}
	}
	return problems
}
