// Package questions is a table of calls and of what becomes of each: the answers of
// `outrigger why call`, which one test holds against YAML and another against what
// real proxies do in a cluster.
//
// A story is a folder in testdata: objects.yaml has the objects, calls.yaml the calls.
// NS- in both begins the names of namespaces, so that stories do not meet, and
// ${IMAGE:name} is an image of the project. Pods that answer call themselves by the
// namespace and name of their service account. The mesh is installed enforced.
package questions

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/why"
)

//go:embed testdata
var stories embed.FS

// Banner is what servers of TCP ports say first.
const Banner = "220 who are you"

// A Story is objects and the calls that are made between them.
type Story struct {
	Name    string
	Objects string // YAML, all namespaces included
	Calls   []Call
}

// A Call is a question and its answer.
type Call struct {
	// Name says what it shows.
	Name string `json:"name"`
	// Caller is NAMESPACE/POD; NAMESPACE/deploy/NAME or NAMESPACE/sa/NAME stand for
	// the pod that is labelled app=NAME.
	Caller  string   `json:"caller"`
	Method  string   `json:"method,omitempty"`
	URL     string   `json:"url"`
	Headers []string `json:"headers,omitempty"`

	Verdict why.Verdict `json:"verdict"`
	Side    why.Side    `json:"side,omitempty"`
	Reason  why.Reason  `json:"reason"`
	// Status is what an HTTP call is answered with, each of them where it depends on
	// the server; zero is none.
	Status []int `json:"status,omitempty"`
	// Servers are those that answer, "namespace/account", where they are in the mesh.
	Servers []string `json:"servers,omitempty"`
	// Change says that a change is proposed that can be applied.
	Change bool `json:"change,omitempty"`
}

// TCP reports whether the call is a connection and no request.
func (c Call) TCP() bool { return strings.HasPrefix(c.URL, "tcp://") }

// Address returns what a connection is opened to.
func (c Call) Address() string { return strings.TrimPrefix(c.URL, "tcp://") }

// Pod returns the namespace of the caller, and its name or, if selector is true,
// that of the label that its pod has.
func (c Call) Pod() (namespace, name string, selector bool) {
	parts := strings.Split(c.Caller, "/")
	return parts[0], parts[len(parts)-1], len(parts) == 3
}

// Question returns the question, for package why.
func (c Call) Question() why.Question {
	q := why.Question{Caller: c.Caller, Method: c.Method, URL: c.URL, Headers: c.Headers}
	if namespace, rest, _ := strings.Cut(c.Caller, "/"); strings.Contains(rest, "/") {
		q.Namespace, q.Caller = namespace, rest
	}
	return q
}

// Args returns the arguments of `outrigger why` that ask the question.
func (c Call) Args() []string {
	q := c.Question()
	args := []string{"call", q.Caller}
	if q.Method != "" {
		args = append(args, q.Method)
	}
	args = append(args, q.URL)
	for _, h := range q.Headers {
		args = append(args, "-H", h)
	}
	if q.Namespace != "" {
		args = append(args, "-n", q.Namespace)
	}
	return args
}

// Stories returns all stories, with names of namespaces that begin with prefix.
func Stories(prefix string) ([]Story, error) {
	folders, err := fs.ReadDir(stories, "testdata")
	if err != nil {
		return nil, fmt.Errorf("list the stories: %w", err)
	}
	var out []Story
	for _, f := range folders {
		s := Story{Name: f.Name()}
		read := func(file string) (string, error) {
			text, err := fs.ReadFile(stories, path.Join("testdata", s.Name, file))
			return strings.ReplaceAll(string(text), "NS-", prefix+s.Name+"-"), err
		}
		if s.Objects, err = read("objects.yaml"); err != nil {
			return nil, fmt.Errorf("read story %s: %w", s.Name, err)
		}
		calls, err := read("calls.yaml")
		if err != nil {
			return nil, fmt.Errorf("read story %s: %w", s.Name, err)
		}
		if err := yaml.UnmarshalStrict([]byte(calls), &s.Calls); err != nil {
			return nil, fmt.Errorf("read the calls of story %s: %w", s.Name, err)
		}
		out = append(out, s)
	}
	return out, nil
}
