package annotation

import (
	"fmt"
	"strings"
)

// Document returns the registry as docs/annotations.md has it.
func Document() string {
	var b strings.Builder
	b.WriteString(`<!-- Written by make generate from internal/annotation. Do not edit. -->

# Labels and annotations

Everything that you can write on a namespace, a Service or a pod, and at the end on SMI's objects. What belongs on a pod stands, in a Deployment and the like, on the pod template.
A Service's value wins over its namespace's, and a namespace's over that of the whole mesh (the chart). Words and lists are read as described; durations are
written as Go does: ` + "`1.5s`, `2m`, `1h30m`" + `.

A value that is not allowed, a key under ` + "`" + Prefix + "`" + ` that is not in this table, and one on a kind of object where it has no effect are mistakes. Whoever writes an annotation with one
on a namespace, or on a Service or pod in a namespace of the mesh, is refused by the API server with key, value and what is allowed, if the object has any annotation under ` + "`" + Prefix + "`" + `. A mistake
that an object had before is let be, so that it does not stop other changes. What got in all the same, because the namespace joined later or outriggerd did not answer, is left out and reported as an Event on the
namespace or Service (reason ` + "`BadAnnotation`" + `), and what the last column says holds.
OSM's names in the table mean the same as ours; other names of OSM are overlooked.
`)
	for _, s := range subjects() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", s.title, s.text)
		b.WriteString("| key | on | value | default | effect | a bad value |\n|---|---|---|---|---|---|\n")
		for _, k := range s.keys {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", k.documentName(), k.documentPlace(), k.documentValue(), cell(k.Default), cell(k.Effect), cell(k.Otherwise))
		}
	}
	return b.String()
}

func (k Key) documentName() string {
	name := "`" + k.Name + "`"
	if k.OSM != "" {
		name += "<br>OSM: `" + k.OSM + "`"
	}
	return name
}

func (k Key) documentPlace() string {
	if k.As == AsAnnotation {
		return k.On.String()
	}
	return k.On.String() + " (" + k.As.String() + ")"
}

func (k Key) documentValue() string {
	value := k.Type
	if k.Unit != "" {
		value += ", in " + k.Unit
	}
	return cell(value + ": " + k.Allowed)
}

// cell escapes what would end a cell of a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
