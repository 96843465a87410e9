package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// maxBody is more than the API server sends: an object and its old version, each
// as large as etcd takes.
const maxBody = 7 << 20

// Namespaces looks a namespace up, usually in an informer's cache.
type Namespaces interface {
	// Namespace returns the namespace, or an error that apierrors.IsNotFound
	// recognises. The caller does not change what it gets.
	Namespace(ctx context.Context, name string) (*corev1.Namespace, error)
}

// Config is what a handler needs. All fields but Adjust, Roots and Observe are
// required.
type Config struct {
	// Settings must be valid. Adjust, where there is one, puts what has changed since
	// into a copy of them, for each request.
	Settings   injector.Settings
	Adjust     func(*injector.Settings)
	Namespaces Namespaces
	// Roots returns all MeshRootCertificates of the system namespace; nil is none.
	Roots func(context.Context) ([]rotation.Root, error)
	// Observe is told each verdict about a pod that is really to be created; it
	// must not block. See [Counter].
	Observe func(injector.Verdict)
	Log     logr.Logger
}

type handler struct{ Config }

// New returns the handler of all paths. It is stateless, and safe for concurrent
// use as far as c.Namespaces is.
func New(c Config) http.Handler {
	if c.Observe == nil {
		c.Observe = func(injector.Verdict) {}
	}
	if c.Roots == nil {
		c.Roots = func(context.Context) ([]rotation.Root, error) { return nil, nil }
	}
	h := handler{c}
	mux := http.NewServeMux()
	for path, match := range map[string]injector.Match{PathOn: injector.MatchOn, PathAsk: injector.MatchAsk, PathOSM: injector.MatchOSM} {
		mux.Handle(path, h.review(func(ctx context.Context, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			return h.inject(ctx, match, r)
		}))
	}
	mux.Handle(PathValidate, h.review(h.validate))
	mux.Handle(PathRefuse, h.review(h.judge))
	mux.HandleFunc(PathConvert, h.convert)
	return mux
}

// answer decides about one request.
type answer func(context.Context, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

// review reads an AdmissionReview and writes one. Whatever is not a review gets an
// HTTP error; the API server then follows the webhook's failure policy.
func (h handler) review(answer answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, fault := decode(w, r)
		if fault != nil {
			h.refuse(w, r, fault)
			return
		}
		var response *admissionv1.AdmissionResponse
		if request.version != admissionv1.SchemeGroupVersion.String() || request.kind != "AdmissionReview" {
			response = errored(http.StatusBadRequest, fmt.Sprintf("read admission review: got %s %s, want %s AdmissionReview", request.version, request.kind, admissionv1.SchemeGroupVersion))
		} else {
			response = answer(r.Context(), request.AdmissionRequest)
		}
		response.UID = request.UID
		h.respond(w, string(request.UID), admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
			Response: response,
		})
	})
}

// respond writes a review back.
func (h handler) respond(w http.ResponseWriter, uid string, review any) {
	body, err := json.Marshal(review)
	if err != nil {
		http.Error(w, fmt.Sprintf("write review: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(body); err != nil {
		h.Log.V(1).Info("response was not taken", "uid", uid, "error", err.Error())
	}
}

// refuse answers what is no review.
func (h handler) refuse(w http.ResponseWriter, r *http.Request, fault *refusal) {
	h.Log.Info("request is not a review", "path", r.URL.Path, "status", fault.code, "fault", fault.text)
	http.Error(w, fault.text, fault.code)
}

type request struct {
	*admissionv1.AdmissionRequest
	version, kind string
}

type refusal struct {
	code int
	text string
}

func decode(w http.ResponseWriter, r *http.Request) (request, *refusal) {
	var review admissionv1.AdmissionReview
	if fault := read(w, r, maxBody, &review); fault != nil {
		return request{}, fault
	}
	if review.Request == nil {
		return request{}, &refusal{http.StatusBadRequest, "decode admission review: it has no request"}
	}
	return request{review.Request, review.APIVersion, review.Kind}, nil
}

// read decodes the body of a request, of at most so many bytes, into a review.
func read(w http.ResponseWriter, r *http.Request, most int64, review any) *refusal {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return &refusal{http.StatusMethodNotAllowed, fmt.Sprintf("method %s is not allowed; use POST", r.Method)}
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return &refusal{http.StatusUnsupportedMediaType, fmt.Sprintf("content type %q is not understood; use application/json", r.Header.Get("Content-Type"))}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("body is larger than %d bytes", most)}
	} else if err != nil {
		return &refusal{http.StatusBadRequest, fmt.Sprintf("read body: %v", err)}
	}
	if err := json.Unmarshal(body, review); err != nil {
		return &refusal{http.StatusBadRequest, fmt.Sprintf("decode review: %v", err)}
	}
	return nil
}

func allowed() *admissionv1.AdmissionResponse { return &admissionv1.AdmissionResponse{Allowed: true} }

// errored refuses a request that could not be judged. The client sees the code,
// and tries again where the code says so.
func errored(code int32, message string) *admissionv1.AdmissionResponse {
	reasons := map[int32]metav1.StatusReason{
		http.StatusBadRequest:          metav1.StatusReasonBadRequest,
		http.StatusForbidden:           metav1.StatusReasonForbidden,
		http.StatusServiceUnavailable:  metav1.StatusReasonServiceUnavailable,
		http.StatusInternalServerError: metav1.StatusReasonInternalError,
	}
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reasons[code], Message: message,
	}}
}

// settings returns those of now.
func (h handler) settings() injector.Settings {
	s := h.Settings
	if h.Adjust != nil {
		h.Adjust(&s)
	}
	return s
}
