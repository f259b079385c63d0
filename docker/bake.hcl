# The three images of one flavour: docker buildx bake -f docker/bake.hcl. `make images` fills the variables.
variable "FLAVOUR" {
  default = "cuda" # or cpu
}
variable "COMMIT" {
  default = "unknown"
}
variable "DOWNLOAD_LOCK" {
  default = "unknown"
}
variable "TRAIN_LOCK" {
  default = "unknown"
}
variable "EVAL_LOCK" {
  default = "unknown"
}
variable "DOWNLOAD_BASE" {
  default = "unknown"
}
variable "TRAIN_BASE" {
  default = "unknown"
}
variable "EVAL_BASE" {
  default = "unknown"
}
variable "DOWNLOAD_SOURCE" {
  default = "unknown"
}
variable "TRAIN_SOURCE" {
  default = "unknown"
}
variable "EVAL_SOURCE" {
  default = "unknown"
}
variable "SOURCE_DATE_EPOCH" {
  default = "0"
}
variable "CERTIFICATES" {
  default = "" # a file of certificates that downloads are to trust beside their own
}
variable "WHEELS" {
  default = "" # a folder of wheels to take before the package index
}
variable "HTTP_PROXY" {
  default = "" # of the caller; in no layer and no history, as BuildKit knows the name
}
variable "HTTPS_PROXY" {
  default = "" # of the caller; in no layer and no history, as BuildKit knows the name
}
variable "NO_PROXY" {
  default = "" # of the caller; in no layer and no history, as BuildKit knows the name
}

group "default" {
  targets = ["download", "train", "eval"]
}

target "image" {
  name       = image
  matrix     = { image = ["download", "train", "eval"] }
  context    = "."
  dockerfile = "docker/${image}.Dockerfile"
  contexts   = WHEELS == "" ? {} : { wheels = WHEELS }
  secret     = CERTIFICATES == "" ? [] : ["type=file,id=certificates,src=${CERTIFICATES}"]
  args = {
    FLAVOUR           = FLAVOUR
    COMMIT            = COMMIT
    LOCK_SHA256       = { download = DOWNLOAD_LOCK, train = TRAIN_LOCK, eval = EVAL_LOCK }[image]
    BASE              = { download = DOWNLOAD_BASE, train = TRAIN_BASE, eval = EVAL_BASE }[image]
    SOURCE_SHA256     = { download = DOWNLOAD_SOURCE, train = TRAIN_SOURCE, eval = EVAL_SOURCE }[image]
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
    HTTP_PROXY        = HTTP_PROXY == "" ? null : HTTP_PROXY
    HTTPS_PROXY       = HTTPS_PROXY == "" ? null : HTTPS_PROXY
    NO_PROXY          = NO_PROXY == "" ? null : NO_PROXY
  }
  output = ["type=docker"]
  tags   = ["essence-${image}:${image == "download" ? "cpu" : FLAVOUR}"]
}
