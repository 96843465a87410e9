package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	jsonpatchapply "github.com/evanphx/json-patch/v5"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/injector"
)

// A document is one of a YAML stream. Only when it was changed is it written
// anew; else its text, with comments and order, stays what it was.
type document struct {
	text    []byte
	object  map[string]any // nil for a document without one
	changed bool
}

// A workload is an object, in a document or in a List of one, that makes pods.
type workload struct {
	kind, namespace, name string
	pod                   *corev1.Pod
}

// String returns "kind/name", with the namespace where it has one.
func (w workload) String() string {
	s := strings.ToLower(w.kind) + "/" + w.name
	if w.namespace != "" {
		s += "." + w.namespace
	}
	return s
}

func parseDocuments(text []byte) ([]*document, error) {
	var docs []*document
	reader := yamlreader.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		part, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read YAML: %w", err)
		}
		doc := &document{text: part}
		raw, err := yaml.YAMLToJSON(part)
		if err != nil {
			return nil, fmt.Errorf("read document %d: %w", len(docs)+1, err)
		}
		if doc.object, err = decodeObject(raw); err != nil {
			return nil, fmt.Errorf("read document %d: %w", len(docs)+1, err)
		}
		docs = append(docs, doc)
	}
}

// decodeObject keeps numbers as they were written.
func decodeObject(raw []byte) (map[string]any, error) {
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("not a Kubernetes object: %w", err)
	}
	return object, nil
}

func writeDocuments(out io.Writer, docs []*document) error {
	for i, doc := range docs {
		text := doc.text
		if doc.changed {
			var err error
			if text, err = yaml.Marshal(doc.object); err != nil {
				return fmt.Errorf("write document %d: %w", i+1, err)
			}
		}
		if i > 0 && !bytes.HasPrefix(text, []byte("---")) {
			text = append([]byte("---\n"), text...)
		}
		if _, err := out.Write(append(bytes.TrimRight(text, "\n"), '\n')); err != nil {
			return err
		}
	}
	return nil
}

// encodeObject is the reverse of decodeObject.
func encodeObject(object map[string]any) []byte {
	raw, err := json.Marshal(object)
	if err != nil {
		panic("object is not JSON: " + err.Error()) // it was made from JSON
	}
	return raw
}

// namespacesIn returns the Namespaces among the documents, by name.
func namespacesIn(docs []*document) map[string]injector.Namespace {
	found := map[string]injector.Namespace{}
	var visit func(map[string]any)
	visit = func(object map[string]any) {
		for _, item := range items(object) {
			visit(item)
		}
		if object["kind"] != "Namespace" {
			return
		}
		var ns corev1.Namespace
		if err := json.Unmarshal(encodeObject(object), &ns); err == nil {
			found[ns.Name] = injector.Namespace{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations}
		}
	}
	for _, doc := range docs {
		visit(doc.object)
	}
	return found
}

// items returns what a List holds.
func items(object map[string]any) []map[string]any {
	var found []map[string]any
	if kind, _ := object["kind"].(string); !strings.HasSuffix(kind, "List") {
		return nil
	}
	list, _ := object["items"].([]any)
	for _, item := range list {
		if o, ok := item.(map[string]any); ok {
			found = append(found, o)
		}
	}
	return found
}

// eachWorkload applies to each workload the operations that patch returns for its
// pod. It goes on after a fault, so that all of them are told at once.
func eachWorkload(docs []*document, patch func(workload) ([]jsonpatch.Operation, error)) error {
	var errs []error
	var visit func(*document, map[string]any)
	visit = func(doc *document, object map[string]any) {
		for _, item := range items(object) {
			visit(doc, item)
		}
		holder, key := templateOf(object)
		if holder == nil {
			return
		}
		changed, err := patchTemplate(object, holder, key, patch)
		errs = append(errs, err)
		doc.changed = doc.changed || changed
	}
	for _, doc := range docs {
		visit(doc, doc.object)
	}
	return errors.Join(errs...)
}

// templateOf returns the map and the key where an object has its pod, or nil when
// it makes none. A Pod is its own: then there is no key.
func templateOf(object map[string]any) (map[string]any, string) {
	path := []string{"spec"}
	switch object["kind"] {
	case "Pod":
		return object, ""
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job":
	case "CronJob":
		path = []string{"spec", "jobTemplate", "spec"}
	default:
		return nil, ""
	}
	holder := object
	for _, key := range path {
		holder, _ = holder[key].(map[string]any)
	}
	if _, ok := holder["template"].(map[string]any); !ok {
		return nil, ""
	}
	return holder, "template"
}

func patchTemplate(object, holder map[string]any, key string, patch func(workload) ([]jsonpatch.Operation, error)) (bool, error) {
	template := holder
	if key != "" {
		template, _ = holder[key].(map[string]any)
	}
	w := workload{}
	w.kind, _ = object["kind"].(string)
	if meta, ok := object["metadata"].(map[string]any); ok {
		w.name, _ = meta["name"].(string)
		w.namespace, _ = meta["namespace"].(string)
		if generate, _ := meta["generateName"].(string); w.name == "" && generate != "" {
			w.name = generate + "*"
		}
	}
	if err := json.Unmarshal(encodeObject(template), &w.pod); err != nil {
		return false, fmt.Errorf("%s: decode pod: %w", w, err)
	}
	ops, err := patch(w)
	if err != nil || len(ops) == 0 {
		return false, err
	}
	if template["metadata"] == nil {
		template["metadata"] = map[string]any{}
	}
	patched, err := applyOperations(encodeObject(template), ops)
	if err != nil {
		return false, fmt.Errorf("%s: %w", w, err)
	}
	if meta, ok := patched["metadata"].(map[string]any); ok && len(meta) == 0 {
		delete(patched, "metadata")
	}
	if key != "" {
		holder[key] = patched
		return true, nil
	}
	clear(object)
	for k, v := range patched {
		object[k] = v
	}
	return true, nil
}

func applyOperations(raw []byte, ops []jsonpatch.Operation) (map[string]any, error) {
	text, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	p, err := jsonpatchapply.DecodePatch(text)
	if err != nil {
		return nil, fmt.Errorf("decode patch: %w", err)
	}
	patched, err := p.Apply(raw)
	if err != nil {
		return nil, fmt.Errorf("apply patch: %w", err)
	}
	return decodeObject(patched)
}
