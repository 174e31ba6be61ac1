/* Where the memory of a Cython memoryview begins, its dimensions, and the step between rows: read anew from the object behind it, not
 * from the slice, whose copies in registers a loop and its check would share. */
#ifndef SEDQ_VIEWS_H
#define SEDQ_VIEWS_H

#define SEDQ_VIEW_START(slice) (*(void *volatile *)&(slice).memview->view.buf)
#define SEDQ_VIEW_LENGTH(slice) (*(volatile Py_ssize_t *)(slice).memview->view.shape)
#define SEDQ_VIEW_WIDTH(slice) (*(volatile Py_ssize_t *)((slice).memview->view.shape + 1))
#define SEDQ_VIEW_STEP(slice) (*(volatile Py_ssize_t *)(slice).memview->view.strides)

#endif
